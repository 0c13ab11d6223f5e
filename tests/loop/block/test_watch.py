"""The watch on the kernel's own events, which are there with and without udevd."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmcopy.block.loop import loop_device
from dmcopy.block.watch import Uevent, Watch

pytestmark = pytest.mark.loop

_SECONDS = 30.0


@pytest.fixture
def partitioned(loops: Any) -> Iterator[Any]:
    """A loop device on which a test may add and remove partition 1: events of both kinds."""
    (loop,) = loops(16384)
    yield loop
    if os.path.exists(f"/sys/class/block/{loop.name}p1"):
        _partition(loop, "delpart")


def _partition(loop: Any, command: str) -> None:
    extent = ["2048", "1024"] if command == "addpart" else []
    subprocess.run([command, loop.path, "1", *extent], check=True, capture_output=True)


def _poke(name: str, times: int) -> None:
    """Have the kernel send a change event, as `udevadm trigger` does."""
    for _ in range(times):
        Path(f"/sys/class/block/{name}/uevent").write_text("change")


def _next(watch: Watch, name: str, action: str) -> Uevent:
    """Return the next such event; a udevd that runs adds change events of its own."""
    return next(event for event in watch if (event.device.name, event.action) == (name, action))


def test_add_change_remove(partitioned: Any) -> None:
    part = f"{partitioned.name}p1"
    with Watch(_SECONDS, source="kernel") as watch:
        _partition(partitioned, "addpart")
        added = _next(watch, part, "add")
        assert (added.device.sectors, added.relisted) == (1024, False)
        assert added.device.parent == partitioned.name
        _poke(part, 1)
        assert _next(watch, part, "change").device.sectors == 1024
        _partition(partitioned, "delpart")
        assert _next(watch, part, "remove").device.sectors == 1024


def test_a_full_buffer_is_made_good_by_listing_again(partitioned: Any, loops: Any) -> None:
    part = f"{partitioned.name}p1"
    (spare,) = loops(8)
    file = spare.backing + ".late"
    Path(file).write_bytes(bytes(4096 * 512))
    _partition(partitioned, "addpart")
    with Watch(_SECONDS, source="kernel", buffer_bytes=1) as watch:
        _poke(spare.name, 50)  # far more than fit; from here on the kernel sends nothing
        _partition(partitioned, "delpart")
        with loop_device(file) as late:
            missed = dict[str, Uevent]()
            while not {part, late.name} <= missed.keys():
                event = next(watch)
                if event.relisted:
                    missed[event.device.name] = event
            assert missed[part].action == "remove"
            found = missed[late.name].device
            assert (found.sectors, found.backing_file) == (4096, file)
            # What comes after the loss is told as ever.
            _poke(late.name, 1)
            assert not _next(watch, late.name, "change").relisted


def test_it_ends_at_its_deadline_and_stays_ended() -> None:
    with Watch(0) as watch:
        assert list(watch) == []
        assert list(watch) == []


def test_it_is_closed_from_another_thread() -> None:
    watch = Watch(_SECONDS, source="kernel")
    ended = threading.Event()
    reader = threading.Thread(target=lambda: (list(watch), ended.set()))
    reader.start()
    watch.close()
    assert ended.wait(_SECONDS / 2)
    reader.join(_SECONDS)
    watch.close()
