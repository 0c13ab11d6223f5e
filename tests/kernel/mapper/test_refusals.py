"""What is refused here before the kernel sees it, shown to the kernel all the same: it agrees."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import DeviceError
from dmcopy.mapper.dmsetup import DmsetupError
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Table, Zero
from tests.kernel.snapshot.ioctls import IoctlMapper

from .conftest import Disks

pytestmark = pytest.mark.kernel

_PATH = Path(__file__).parents[2] / "unit" / "table" / "refusals.py"
_SPEC = importlib.util.spec_from_file_location("refusals", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
refusals = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(refusals)
LINES = {
    name: [words for words, _ in getattr(refusals, name)]
    for name in ("SNAPSHOTS", "MIRRORS", "OTHERS")
}
"""Each list is one test: to begin and end one takes a guest ten times as long as a line does."""


def release() -> tuple[int, ...]:
    """Return the numbers of the running kernel, such as (6, 12, 117)."""
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:3]))


# Where the kernel is more lenient than we are: it ignores the words that are left over, or counts
# them differently, or takes what is surely a mistake.
LENIENT = {
    "snapshot A B P 8 0 x": "words behind a count of 0 features are ignored (measured on both)",
    "linear A 18446744073709551616": "sscanf's %llu takes it modulo 2^64 (measured on both)",
    "linear A " + "9" * 5000: "the same",
    "unstriped 2 8 2 A 0": "an off-by-one of the kernel: stripe 2 of 2 maps past the end",
}
# Measured: 6.1.192 and 6.12.107 refuse it only once there is a snapshot to take the store over
# from, 6.12.117 immediately.
if release() < (6, 12, 117):
    LENIENT["snapshot-merge A B N 8"] = "there is no snapshot to take the store over from"


@pytest.fixture(scope="module")
def probe(ioctls: IoctlMapper) -> Iterator[IoctlMapper]:
    """Tables are loaded for the device `probe`, and never resumed."""
    # With a table: sysfs has no device that never had one, and it would seem to be a test's.
    device = ioctls.create("probe", Table.of(8, Zero()))
    yield ioctls
    device.remove()


@pytest.mark.parametrize("name", LINES)
def test_the_kernel_refuses_the_lines_too(probe: IoctlMapper, raw_disks: Disks, name: str) -> None:
    """Give the kernel lines that we would have refused."""
    taken = [words for words in LINES[name] if takes(probe, raw_disks.fill(f"0 16384 {words}"))]
    assert taken == [words for words in LINES[name] if words in LENIENT]


def takes(probe: IoctlMapper, text: str) -> bool:
    """Whether the kernel takes a table, which is dropped again."""
    try:
        probe.load_text("probe", text)
    except DeviceError:
        return False
    probe.clear("probe")
    return True


@pytest.mark.usefixtures("probe")
def test_the_kernel_refuses_the_layouts_too(mapper: KernelMapper, raw_disks: Disks) -> None:
    """Or dmsetup does, which looks for the words of a line."""
    for text, _ in refusals.LAYOUTS:
        try:
            mapper.dmsetup.run("load", "probe", stdin=raw_disks.fill(text) + "\n")
        except DmsetupError:
            continue
        pytest.fail(f"it takes {text!r}")


def test_the_kernels_own_reason_is_in_the_message(mapper: KernelMapper, disks: Disks) -> None:
    # Only the device tells that it is too small.
    table = Table.parse(f"0 99999999 linear {disks.a} 0")
    with pytest.raises(DeviceError, match=r"the kernel says: table: .*too small for target"):
        mapper.create("dmcopy-big", table)
