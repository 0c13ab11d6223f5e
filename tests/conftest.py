"""What holds for every test."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

collect_ignore = ["examples"]  # projects of their own, which tests/unit/examples runs


def pytest_configure(config: pytest.Config) -> None:
    """Prepare hypothesis, and take signals as in the foreground.

    The latter is handed down to the commands that tests start: a shell has a job in the background
    ignore SIGINT, and each of its children, nohup SIGHUP, and who knows what started a CI's runner.
    """
    if not config.getoption("--vm-report"):  # tests in a guest do without what takes long to import
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            "dmcopy", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )  # no verdict hangs on how fast the machine is
        settings.load_profile("dmcopy")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python ignores these
        if signal.getsignal(number) == signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


@pytest.fixture(autouse=True, scope="session")
def _json_is_as_its_schema_says() -> Iterator[None]:
    """Hold each command's JSON to its schema; tests/unit/schemas/test_schemas.py fails without it.

    Where there is no jsonschema, as in a bare guest, the rest of the tests runs without.
    """
    holding: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if importlib.util.find_spec("jsonschema"):
        from tests.schemas import holding as hold

        holding = hold()
    with holding:
        yield


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let `gc.collect` pass over what there is before the first test."""
    del session
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _unclosed_files_are_of_their_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what a module's tests left: the warning would be the error of some test much later.

    Not in a guest, where it takes a third of a second.
    """
    yield
    if not request.config.getoption("--vm-report"):
        gc.collect()


@pytest.fixture
def only_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return what lets no more than that many threads be started: RLIMIT_NPROC and RLIMIT_AS."""
    start = threading.Thread.start

    def limit(left: int) -> None:
        def limited(thread: threading.Thread) -> None:
            nonlocal left
            if not left:
                raise RuntimeError("can't start new thread")
            left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)

    return limit
