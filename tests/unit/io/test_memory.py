"""The pages that requests read into: their place, their bound, and huge pages."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dmcopy.errors import MissingError
from dmcopy.io.request import Memory
from dmcopy.units import PAGE_SIZE

HUGE = 2 << 20


def mapping(memory: Memory) -> dict[str, int]:
    """What the kernel says of the map that holds a memory's first page, in bytes."""
    text = Path("/proc/self/smaps").read_text()
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text):
        start, end = (int(word, 16) for word in block.split(" ", 1)[0].split("-"))
        if start <= memory.address < end:
            sizes = re.findall(r"^(\w+): +(\d+) kB", block, re.MULTILINE)
            return {name: int(number) << 10 for name, number in sizes}
    raise AssertionError("no map holds it")


@pytest.mark.parametrize("size", [PAGE_SIZE, HUGE - PAGE_SIZE, HUGE, 3 * HUGE + PAGE_SIZE])
def test_every_byte_can_be_used_and_is_the_memory_s_own(size: int) -> None:
    memories = [Memory(size // PAGE_SIZE) for _ in range(3)]
    for number, memory in enumerate(memories):
        assert memory.size_bytes == len(memory.view) == size
        assert memory.is_huge == (size >= HUGE), "pages that are not are pinned, where they can be"
        assert memory.address % (HUGE if size >= HUGE else PAGE_SIZE) == 0
        memory.view[:] = bytes([number]) * size
    for number, memory in enumerate(memories):
        assert memory.read([(0, size)]) == bytes([number]) * size
        memory.close()


@pytest.mark.skipif(
    "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="no huge pages: transparent_hugepage/enabled is never",
)
def test_large_pools_have_huge_pages_and_use_no_more_than_their_size() -> None:
    memory = Memory((2 * HUGE + 3 * PAGE_SIZE) // PAGE_SIZE)
    memory.view[:1] = memory.view[-1:] = b"x"
    touched = mapping(memory)["Rss"]
    assert touched <= memory.size_bytes, "the last page took a huge one"
    memory.view[:] = bytes(memory.size_bytes)
    after = mapping(memory)
    assert after["Rss"] <= memory.size_bytes
    assert after["AnonHugePages"] == 2 * HUGE
    memory.close()


def test_a_child_has_no_share_in_it() -> None:
    """Or a write of either side would give it a copy, and what the kernel reads into the other."""
    memory = Memory(2)
    address = memory.address
    pid = os.fork()
    if not pid:
        held = any(
            int(start, 16) <= address < int(end, 16)
            for start, end in re.findall(
                r"^([0-9a-f]+)-([0-9a-f]+) ", Path("/proc/self/maps").read_text(), re.MULTILINE
            )
        )
        os._exit(held)
    assert os.waitpid(pid, 0)[1] == 0
    memory.close()


def test_memory_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingError, match="there is no memory for 4096 PiB of data"):
        Memory((1 << 62) // PAGE_SIZE)
