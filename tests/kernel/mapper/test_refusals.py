"""What is refused here before the kernel sees it, shown to the kernel all the same: it agrees."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcopy.errors import DeviceError
from dmcopy.ledger import Ledger
from dmcopy.mapper.dmsetup import DmsetupError
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.table import Table, Zero

from .conftest import Disks

pytestmark = pytest.mark.kernel

_PATH = Path(__file__).parents[2] / "unit" / "table" / "refusals.py"
_SPEC = importlib.util.spec_from_file_location("refusals", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
refusals = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(refusals)
LINES = [words for words, _ in refusals.SNAPSHOTS + refusals.MIRRORS + refusals.OTHERS]


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
# from, 6.12.117 at once.
if release() < (6, 12, 117):
    LENIENT["snapshot-merge A B N 8"] = "there is no snapshot to take the store over from"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelMapper]:
    mapper = KernelMapper(ledger=Ledger(tmp_path_factory.mktemp("probe") / "ledger.jsonl"))
    # With a table: sysfs has no device that never had one, and it would seem to be a test's.
    device = mapper.create("dmcopy-probe", Table.of(8, Zero()))
    yield mapper
    device.remove()


def refused(probe: KernelMapper, text: str) -> bool:
    """Give the kernel a table that we would have refused."""
    try:
        probe.dmsetup.run("load", "dmcopy-probe", stdin=text + "\n")
    except DmsetupError:
        return True
    probe.clear("dmcopy-probe")
    return False


@pytest.mark.parametrize("words", LINES, ids=lambda words: words[:60].replace(" ", "_"))
def test_the_kernel_refuses_the_line_too(probe: KernelMapper, raw_disks: Disks, words: str) -> None:
    assert refused(probe, raw_disks.fill(f"0 16384 {words}")) == (words not in LENIENT)


@pytest.mark.parametrize(
    "text", [text for text, _ in refusals.LAYOUTS], ids=lambda text: text.replace("\n", "|")
)
def test_the_kernel_refuses_the_layout_too(
    probe: KernelMapper, raw_disks: Disks, text: str
) -> None:
    assert refused(probe, raw_disks.fill(text))


def test_the_kernels_own_reason_is_in_the_message(mapper: KernelMapper, disks: Disks) -> None:
    # Only the device tells that it is too small.
    table = Table.parse(f"0 99999999 linear {disks.a} 0")
    with pytest.raises(DeviceError, match=r"the kernel says: table: .*too small for target"):
        mapper.create("dmcopy-big", table)
