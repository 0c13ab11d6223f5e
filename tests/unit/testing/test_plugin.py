"""The pytest plugin, with a process of this machine in the place of a guest."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest

from dmcopy import vm
from dmcopy.errors import LostVMError, MissingError
from dmcopy.testing import plugin, reporter
from dmcopy.vm.channel import Channel, ChannelLostError, Command

pytest_plugins = ["pytester"]

_AGENT = "import sys; from dmcopy.vm.agent import Agent; Agent(int(sys.argv[1])).serve()"


class FakeGuest:
    """Runs commands here. The word `lost` as a kernel has no guest, `die` one that dies."""

    booted: list[str]
    closed: int

    def __init__(self, kernel: str, disks: object, memory: str) -> None:
        assert disks
        assert memory == "2G"
        if kernel == "lost":
            raise MissingError("no qemu here: install it")
        FakeGuest.booted.append(kernel)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _AGENT, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        self._channel = Channel(ours)
        self._channel.wait_hello(time.monotonic() + 30)

    def start(self, argv: list[str], *, env: dict[str, str], **options: object) -> Command:
        env = {**os.environ, **env, "GUEST_PID": str(self._process.pid)}
        options["cwd"] = str(options["cwd"])
        return self._channel.start(argv, env=env, **options)  # type: ignore[arg-type]

    def poll(self, command: Command, timeout: float) -> int | None:
        try:
            return command.poll(timeout)
        except ChannelLostError as error:
            raise LostVMError(f"lost VM: {error}") from None

    def kill(self) -> None:
        FakeGuest.closed += 1
        self._process.kill()
        self._process.wait(30)
        self._channel.close()


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeGuest]]:
    monkeypatch.setattr(vm, "guest", FakeGuest)
    # The conftests below replace it in this process: kernel tests that follow are to be skipped.
    monkeypatch.setattr(plugin, "missing_here", plugin.missing_here)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    FakeGuest.booted, FakeGuest.closed = [], 0
    yield FakeGuest
    assert len(FakeGuest.booted) == FakeGuest.closed


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(
        # The "guest" is this machine, which need not have device-mapper.
        "from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''"
    )
    pytester.makepyfile(
        textwrap.dedent(
            """
            import os, sys, pytest

            def test_plain():
                assert "GUEST_PID" not in os.environ

            @pytest.mark.kernel
            def test_good():
                assert "GUEST_PID" in os.environ

            @pytest.mark.kernel
            @pytest.mark.parametrize("x", [1, 2])
            def test_of(x):
                print("printed", x)
                assert x == 1

            @pytest.mark.kernel
            def test_skipped():
                pytest.skip("a reason")

            @pytest.mark.kernel
            @pytest.mark.xfail(strict=True)
            def test_xfailed():
                assert 0

            @pytest.fixture
            def broken():
                yield
                raise OSError("in the teardown")

            @pytest.mark.kernel
            def test_teardown(broken):
                pass
            """
        )
    )
    return pytester


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *args)


def test_results_of_two_kernels_are_replayed(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "6.1,6.12", "-v", "-rA")
    result.assert_outcomes(passed=7, failed=2, skipped=2, xfailed=2, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*test_plain PASSED*",
            "*test_good[[]6.1] PASSED*",
            "*test_of[[]1-6.1] PASSED*",
            "*test_of[[]2-6.1] FAILED*",
            "*test_skipped[[]6.1] SKIPPED*",
            "*test_good[[]6.12] PASSED*",
        ]
    )
    result.stdout.fnmatch_lines(["*OSError: in the teardown*", "*assert 2 == 1*", "printed 2"])
    assert FakeGuest.booted == ["6.1", "6.12"]
    assert FakeGuest.closed == 2


def test_selection_by_word_and_kernel(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "6.1,6.12", "-k", "good and 6.12")
    result.assert_outcomes(passed=1, deselected=12)
    assert FakeGuest.booted == ["6.12"]


def test_no_guest_boots_for_nothing(suite: pytest.Pytester) -> None:
    run(suite, "--vm", "6.1", "-k", "plain").assert_outcomes(passed=1, deselected=6)
    result = run(suite, "--vm", "6.1", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*::test_good[[]6.1]"])
    assert FakeGuest.booted == []


@pytest.fixture
def dealt(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("DMCOPY_TEST", raising=False)
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        test_one="""
        import pytest
        pytestmark = pytest.mark.kernel(either=True)
        @pytest.mark.parametrize("x", [1, 2])
        def test_of(x): pass
        def test_alone(): pass
        @pytest.mark.kernel(either=False)
        def test_both(): pass
        """,
        test_two="""
        import pytest
        @pytest.mark.kernel
        def test_each(): pass
        @pytest.mark.kernel(either=True)
        class TestThese:
            def test_first(self): pass
            @pytest.mark.kernel
            def test_second(self): pass
        """,
    )
    return pytester


def names(pytester: pytest.Pytester, *args: str) -> list[str]:
    result = run(pytester, "--collect-only", "-q", *args)
    return [line.rpartition("::")[2] for line in result.outlines if "::" in line]


def test_what_runs_on_either_kernel_is_dealt_by_turns(dealt: pytest.Pytester) -> None:
    first = ["test_of[1-6.1]", "test_alone[6.1]", "test_both[6.1]", "test_each[6.1]"]
    second = ["test_of[2-6.12]", "test_both[6.12]", "test_each[6.12]"]
    last = ["test_second[6.1]", "test_first[6.12]"]
    assert names(dealt, "--vm", "6.1,6.12") == [*first, last[0], *second, last[1]]
    run(dealt, "--vm", "6.1,6.12", "-v").assert_outcomes(passed=9)
    assert FakeGuest.booted == ["6.1", "6.12"]
    assert names(dealt, "--vm", "6.1,6.12", "test_two.py") == [
        *("test_each[6.1]", "test_first[6.1]", "test_each[6.12]", "test_second[6.12]")
    ]


def test_all_of_it_runs_on_one_kernel_and_in_a_long_run(
    dealt: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = names(dealt, "--vm", "6.12")
    assert len(alone) == 7
    monkeypatch.setenv("DMCOPY_TEST", "long")
    both = names(dealt, "--vm", "6.1,6.12")
    assert both == [name.replace("6.12", "6.1") for name in alone] + alone


@pytest.mark.parametrize("processors", [1, 2])
def test_stop_at_the_first_failure(
    suite: pytest.Pytester, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    result = run(suite, "--vm", "6.1,6.12", "-x")
    result.assert_outcomes(passed=3, failed=1)
    assert FakeGuest.booted == ["6.1", "6.12"][:processors]


def test_guests_run_side_by_side(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    one_by_one = run(suite, "--vm", "6.1").parseoutcomes()
    three = run(suite, "--vm", "6.1,6.12,6.6").parseoutcomes()
    assert FakeGuest.booted == ["6.1", "6.1", "6.12", "6.6"]
    assert three["failed"] == 3 * one_by_one["failed"]


def test_last_failed(suite: pytest.Pytester) -> None:
    suite.runpytest_inprocess("--vm", "6.1")
    result = suite.runpytest_inprocess("--vm", "6.1", "--lf")
    result.assert_outcomes(passed=1, failed=1, errors=1)


def test_junit(suite: pytest.Pytester) -> None:
    run(suite, "--vm", "6.1", "--junitxml=junit.xml")
    text = (suite.path / "junit.xml").read_text()
    assert 'name="test_good[6.1]"' in text
    assert "assert 2 == 1" in text


def test_a_guest_that_dies_fails_the_rest_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import os, pytest, signal, time
        pytestmark = pytest.mark.kernel
        def test_before(): pass
        def test_deadly():
            time.sleep(1)
            os.kill(int(os.environ["GUEST_PID"]), signal.SIGKILL)
            time.sleep(1)
        def test_after(): pass
        """
    )
    result = run(pytester, "--vm", "6.1")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["not run to its end: lost VM: the guest hung up"])


def test_a_guest_that_cannot_boot(suite: pytest.Pytester) -> None:
    result = run(suite, "--vm", "lost")
    result.assert_outcomes(passed=1, failed=6)
    result.stdout.fnmatch_lines(["not run to its end: no qemu here: install it"])


def test_a_guest_that_goes_silent(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from dmcopy.testing import plugin\nplugin.missing_here = lambda: ''")
    pytester.makepyfile(
        """
        import pytest, time
        @pytest.mark.kernel
        def test_slow(): time.sleep(12)  # outlives the test for a moment only
        """
    )
    result = run(pytester, "--vm", "6.1", "--vm-silence", "3")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no result from the guest for 3 s*"])


def test_a_warning_in_the_guest_is_one_here(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_other="""
        import pytest, warnings
        @pytest.mark.kernel
        def test_it(): warnings.warn("differed once")
        """
    )
    result = run(suite, "--vm", "6.1", "test_other.py")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["test_other.py::test_it in 6.1", "*UserWarning: differed once*"])


def test_what_pytest_in_the_guest_complains_of_is_shown(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_other="""
        import os, pytest
        if "GUEST_PID" in os.environ:
            raise RuntimeError("only in a guest")
        @pytest.mark.kernel
        def test_it(): pass
        """
    )
    result = run(suite, "--vm", "6.1", "test_other.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*only in a guest*"])


def test_without_a_guest_what_is_missing_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "missing_here", lambda: "no device-mapper in the kernel 1.2")
    pytester.makepyfile("import pytest\n@pytest.mark.kernel\ndef test_it(): assert 0")
    result = run(pytester, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*no device-mapper in the kernel 1.2; run it in a guest*"])


def test_in_place_where_there_is_device_mapper(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "missing_here", lambda: "")
    monkeypatch.delenv("DMCOPY_DISKS", raising=False)
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.kernel
        def test_it(): pass
        def test_disks(scratch_disks): pass
        """
    )
    run(pytester).assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize("word", ["", "6.1,,6.12"])
def test_no_kernel_named(pytester: pytest.Pytester, word: str) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = run(pytester, f"--vm={word}")
    assert result.ret in ((0,) if not word else (4,))


def test_lines_are_cut_from_a_stream() -> None:
    lines = reporter.Lines()
    stream = b'noise\n\ndmcopy-report {"a": 1}\nmore noise\ndmcopy-report {"a": 2}\n'
    seen = [report for byte in stream for report in lines.feed(bytes([byte]))]
    assert seen == [{"a": 1}, {"a": 2}]
    assert lines.other == b"noise\nmore noise\n"
