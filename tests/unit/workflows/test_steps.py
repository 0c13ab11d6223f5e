"""Running steps: what a signal may not come between."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.table import Linear, Table
from dmcopy.workflows.journal import Journal
from dmcopy.workflows.record import Plan
from dmcopy.workflows.session import Session
from dmcopy.workflows.step import Step

from .fake_mirrors import SECTORS, FakeMirrors


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_waits_for_the_end_of_joined_steps(tmp_path: Path, threads: int) -> None:
    """Also when the kernel gives it to another thread, such as that of a progress bar."""
    fake, ended = FakeMirrors(tmp_path), threading.Event()
    table = Table.of(SECTORS, Linear(fake.disk("a"), 0))
    fake.create("home", table)
    others = [threading.Thread(target=ended.wait, args=(60,)) for _ in range(threads)]
    for other in others:
        other.start()
    suspend: Callable[..., None] = fake.suspend

    def interrupted(name: str, **options: bool) -> None:
        suspend(name, **options)
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass  # where Python would call the handler

    fake.suspend = interrupted  # type: ignore[method-assign]
    steps = [Step("suspend", "home"), Step("resume", "home", before=str(table), joined=True)]
    session = Session(fake, Journal(tmp_path / "journal"))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run(Plan("mirror", "move", "home", steps, devices=("home",)))
    finally:
        signal.signal(signal.SIGINT, handler)
        ended.set()
        for other in others:
            other.join()
    assert not fake.devices["home"].suspended
    assert session.journal.records() == []
