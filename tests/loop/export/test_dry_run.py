"""What --dry-run prints for the userspace engine, the shim's dmsetup runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dmcopy.runtime import control_path
from dmcopy.table import Table
from tests.loop.export.here import MIB, SECONDS, Here

pytestmark = pytest.mark.loop


class Script:
    """Runs what a trial printed, with the shim's dmsetup."""

    def __init__(self, here: Here) -> None:
        self._here = here
        self._bin = here.folder / "bin"
        here.dm("shim", self._bin)

    def __call__(self, *words: str | os.PathLike[str]) -> str:
        """Try a command, then run what it printed, which is returned."""
        script = self._here.dmcopy(*words, "--dry-run")
        path = f"{self._bin}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-eu"],
            input=script,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return script


def test_what_is_printed_does_it(here: Here) -> None:
    trial, image, cow = Script(here), here.image("disk.img", MIB), here.image("cow.img", MIB)
    words = ("dm", "create", "some data", "--table", f"0 2048 linear {image} 0")
    expected = f"dmsetup create 'some\\x20data' <<'END-OF-TABLE'\n0 2048 linear {image} 0\n"
    assert here.dmcopy(*words, "--dry-run").startswith(expected)
    assert not Path(control_path()).exists()  # nor is a server started for it
    trial(*words)
    trial("dm", "rename", "some data", "data")
    trial("snapshot", "take", "snap", "data", cow)
    (state,) = json.loads(here.dmcopy("snapshot", "status", "--json"))
    assert (state["state"], state["origin"]) == ("active", "data")
    trial("snapshot", "drop", "snap")
    assert str(here.mapper.table("data")) == f"0 2048 linear {image} 0"
    trial("dm", "load", "data", "--table", "0 8 zero")
    assert here.mapper.info("data").inactive
    trial("dm", "clear", "data")
    assert not here.mapper.info("data").inactive
    trial("dm", "suspend", "--noflush", "data")
    assert here.mapper.info("data").suspended
    trial("dm", "resume", "data")
    trial("dm", "wipe_table", "-S", "name=data")
    assert str(here.mapper.table("data")) == "0 2048 error"
    trial("dm", "remove", "--force", "data")
    assert here.mapper.ls() == []


def test_a_removal_that_was_deferred_is_told_and_taken_back(here: Here) -> None:
    base = here.mapper.create("base", Table.parse("0 8 zero"))
    with open(base.path, "rb"):
        assert not base.info.deferred
        here.dm("remove", "--deferred", "base")
        assert base.info.deferred
        assert "State:             ACTIVE (DEFERRED REMOVE)\n" in here.dm("info", "base")
        (told,) = json.loads(here.dm("info", "base", "--json"))
        assert told["deferred"] is True
        here.dm("message", "base", "0", "@cancel_deferred_remove")
        assert not base.info.deferred
    here.dm("remove", "base")


def test_verbs_of_dmsetups_that_dmcopy_has_nothing_to_add_to(here: Here) -> None:
    assert here.dm("splitname", "--noheadings", "a-b") == "a:b:\n"
    assert "names_using_dev" in here.dm("help", "-c")
    here.dm("create", "x", "--table", "0 8 zero")
    assert here.dm("mangle", "x") == "x: [no UUID]: name already in correct form\n"
    told = here.dm("setgeometry", "x", "1", "1", "1", "0", code=2)
    assert "Operation not supported" in told
    here.dm("remove", "-S", "name=x")
