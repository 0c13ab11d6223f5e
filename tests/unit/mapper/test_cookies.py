"""Cookies are counted down by udev's rules; none outlives its call, or it is reaped."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dmcopy.errors import DeadlineError
from dmcopy.ledger import Ledger
from dmcopy.mapper import cookies
from dmcopy.mapper.cookies import Cookie, cookie, left_behind
from dmcopy.mapper.dmsetup import Dmsetup
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from dmcopy.mapper.udev import Udev
from tests.waiting import Program

from .conftest import Fake
from .recorded import failed, ok


def keys() -> set[str]:
    """The keys of the semaphores of this machine."""
    return {cookies.key_text(row[0]) for row in cookies._semaphores()}


def count(made: Cookie, change: int) -> None:
    """Do what dmsetup does for a task (1), or udev's rules when they are done (-1)."""
    operation = cookies._Operation(0, change, 0)
    assert cookies._libc().semop(made.semaphore, ctypes.byref(operation), 1) == 0


@pytest.fixture(autouse=True)
def _semaphores_work(ledger: Ledger) -> None:
    with cookie(ledger) as made:
        if made is None:
            pytest.skip("there are no semaphores to be had here")


def test_it_is_there_and_noted_for_the_with_block_only(ledger: Ledger) -> None:
    with cookie(ledger) as made:
        assert made is not None
        (entry,) = ledger.entries()
        assert (entry.kind, entry.name) == ("cookie", made.option)
        assert made.option in keys()
        assert left_behind(entry) == made
        made.wait(10)  # nothing has a task for udev: immediately
    assert made.option not in keys()
    assert left_behind(entry) is None
    assert ledger.entries() == []


def test_a_wait_ends_when_the_rules_are_done_or_at_the_deadline(ledger: Ledger) -> None:
    with cookie(ledger) as made:
        assert made is not None
        count(made, 1)
        with pytest.raises(DeadlineError, match=r"udev was not done with the device within 0.1 s"):
            made.wait(0.1)
    with cookie(ledger) as made:
        assert made is not None
        count(made, 1)
        rules = threading.Timer(0.1, count, (made, -1))
        rules.start()
        made.wait(30)
        rules.join()


def test_somebody_elses_semaphore_of_the_same_key_is_left_alone(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cookie(ledger) as made:
        assert made is not None
        monkeypatch.setattr("dmcopy.ledger.time.time", lambda: 1000.0)
        ledger.add("cookie", made.option)
        (entry,) = [entry for entry in ledger.entries() if entry.made == 1000.0]
        assert left_behind(entry) is None
        ledger.cancel(entry.id)


VICTIM = """
import sys, time
from dmcopy.ledger import Ledger
from dmcopy.mapper.cookies import cookie

with cookie(Ledger(sys.argv[1])) as made:
    print(made.option, flush=True)
    time.sleep(600)
"""


def test_one_whose_process_was_killed_is_reaped(mapper: KernelMapper, ledger: Ledger) -> None:
    words = [sys.executable, "-c", VICTIM, str(ledger.path)]
    with Program(words, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        option = victim.stdout.readline().strip()
        assert option in keys()
        assert Reaper(mapper, ledger).run().removed == []  # its owner lives
        victim.send_signal(signal.SIGKILL)
        victim.wait(10)
    reaper = Reaper(mapper, ledger)
    assert list(reaper.script()) == [f"ipcrm --semaphore-key {option}"]
    assert [entry.name for entry in reaper.run().removed] == [option]
    assert option not in keys()


def test_dmsetup_is_given_one_for_what_udev_is_told_of(
    fake: Fake, ledger: Ledger, tmp_path: Path
) -> None:
    assert tmp_path
    dmsetup = Dmsetup(udev=Udev.COOKIES, ledger=ledger)
    fake.answer(failed("remove", "--udevcookie", stderr="no\n"), {"words": []})
    dmsetup.change("create", "--", "one")
    dmsetup.change("load", "--", "one")
    dmsetup.change("remove", "--force", "--", "one")
    with pytest.raises(Exception, match="dmsetup remove --udevcookie"):
        dmsetup.change("remove", "--", "one")
    create, load, force, remove = (call["words"] for call in fake.calls)
    assert (create[:2], create[3:]) == (["create", "--udevcookie"], ["--", "one"])
    assert create[2].startswith("0x0d4d")
    assert create[2] != remove[2]
    assert (load, force) == (["load", "--", "one"], ["remove", "--force", "--", "one"])
    assert not {create[2], remove[2]} & keys()
    assert ledger.entries() == []


def test_a_dmsetup_that_is_killed_leaves_none(fake: Fake, ledger: Ledger) -> None:
    dmsetup = Dmsetup(udev=Udev.COOKIES, ledger=ledger, timeout=0.1)
    fake.answer(ok("create", sleep=600))
    with pytest.raises(DeadlineError, match=r"did not end within 0\.1 s"):
        dmsetup.change("create", "--", "one")
    made = json.loads(ledger.path.read_text().splitlines()[-2])
    assert made["kind"] == "cookie"
    assert made["name"] not in keys()
    assert ledger.entries() == []
