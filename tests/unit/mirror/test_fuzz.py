"""Damaged mirror logs: whatever is wrong is said in one sentence with its byte, and nothing else.

Everything that reads a log is run on each, and what a mirror makes of it when it resumes.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmcopy.cli.mirror_map import draw
from dmcopy.errors import MetadataError, UsageError
from dmcopy.mirror.check import guess_region_size
from dmcopy.mirror.logfile import open_log, read_log_bytes
from dmcopy.ondisk.mirror_log import MAGIC, MirrorLog, findings, log_bytes, resume
from dmcopy.table.record import Ratio

EXAMPLES = 20_000 if os.environ.get("DMCOPY_TEST") == "long" else 200
REGIONS = 300
SECTORS = REGIONS * 8
_NUMBERS = st.one_of(
    st.integers(0, 2 * REGIONS),
    st.sampled_from([1, 2, 3, 63, 64, 65, 1 << 31, 1 << 32, (1 << 32) - 1, 1 << 63]),
)
_DAMAGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.sampled_from([(0, 4), (4, 4), (8, 8)]), _NUMBERS),
        st.tuples(st.just("flip"), st.integers(0, 1535), st.integers(1, 255)),
        st.tuples(st.just("flip"), st.integers(1024, 1024 + 40), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, 1536)),
    ),
    max_size=4,
)
Damage = tuple[object, ...]


def damaged(dirty: set[int], damages: list[Damage]) -> bytes:
    log = resume(bytes(2048), REGIONS, "nosync").log
    for region in dirty:
        log.clean[region] = False
    data = bytearray(log.build())
    for damage in damages:
        match damage:
            case ("set", (int(at), int(size)), int(number)):
                data[at : at + size] = number.to_bytes(8, "little")[:size]
            case ("flip", int(at), int(bits)) if at < len(data):
                data[at] ^= bits
            case ("cut", int(at)):
                del data[at:]
    return bytes(data)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "log"


@settings(max_examples=EXAMPLES)
@given(dirty=st.sets(st.integers(0, REGIONS - 1)), damages=_DAMAGES)
@example(dirty=set(), damages=[("set", (8, 8), 0)])  # for no region at all
@example(dirty=set(), damages=[("set", (8, 8), (1 << 32) - 1)])  # half a GiB of bits, not there
@example(dirty=set(), damages=[("set", (8, 8), 299)])  # a bit behind the last region
@example(dirty={5}, damages=[("set", (4, 4), 1)])
@example(dirty={5}, damages=[("cut", 1061)])  # in the last byte but one
@example(dirty=set(), damages=[("cut", 15)])
@example(dirty=set(), damages=[("cut", 0)])
def test_damaged_logs(path: Path, dirty: set[int], damages: list[Damage]) -> None:
    data = damaged(dirty, damages)
    path.write_bytes(data)
    before = path.stat()
    try:
        with open_log(str(path)) as device:
            read = read_log_bytes(device)
        log = MirrorLog.parse(read, str(path))
        sentences = findings(read, str(path))
    except MetadataError as error:
        sentences = [str(error)]
    else:
        assert set(MirrorLog.parse(log.build(read)).dirty()) == set(log.dirty())
        list(draw(Ratio(log.clean.count(), log.nr_regions), log, width=40))
        try:
            size = guess_region_size(SECTORS, log)
        except UsageError:
            pass
        else:
            assert -(-SECTORS // size) == log.nr_regions
    assert all(re.match(re.escape(str(path)) + r": byte \d+: .", text) for text in sentences)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, before.st_mtime_ns)

    # A mirror reads as much as its own regions need, and believes no more than the header says.
    whole = data.ljust(log_bytes(REGIONS), b"\0")
    magic, version, there = struct.unpack_from("<IIQ", whole)
    bits = int.from_bytes(whole[1024:], "little") & (1 << min(there, REGIONS)) - 1
    kept = bits if magic == MAGIC and version in (1, 2) else 0
    for sync, clean in ((None, kept), ("sync", 0), ("nosync", (1 << REGIONS) - 1)):
        resumed = resume(whole, REGIONS, sync).log
        assert int.from_bytes(resumed.clean.data, "little") == clean
