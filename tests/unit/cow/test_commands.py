"""dmcopy cow on files: what it prints, what it writes, and one sentence for bad input."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dmcopy.block import BlockDevice, geometry
from dmcopy.block.storage import StorageExtent
from dmcopy.cow import merge as merging
from dmcopy.cow.moving import Mover
from dmcopy.errors import DeviceError, ExitCode
from dmcopy.transfer import layout
from tests.unit.cow.conftest import Run
from tests.unit.cow.stores import Pairs, allocate, build, overlay, scattered

ORIGIN_CHUNKS = 600


def make(chunk_size: int = 8, changed: int = 300, *, valid: bool = True, tail: int = 0) -> Pairs:
    """Make the files origin, cow, and snapshot: what the first two read as together.

    The last chunk of the origin, changed too, has `tail` sectors; 0: all of them.
    """
    size = ORIGIN_CHUNKS * chunk_size - (chunk_size - tail if tail else 0)
    olds = scattered(changed, ORIGIN_CHUNKS - 1)
    pairs = allocate([*olds, ORIGIN_CHUNKS - 1], chunk_size)
    origin = random.Random(2).randbytes(size * 512)
    cow = build(chunk_size, pairs, changed + 60, valid=valid)
    Path("origin").write_bytes(origin)
    Path("cow").write_bytes(cow)
    Path("snapshot").write_bytes(overlay(origin, cow, chunk_size, pairs))
    return pairs


def same(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()


def test_info_and_dump(cow: Run) -> None:
    cow()  # only to be in the folder
    pairs = make()
    code, out, err = cow("info", "cow")
    assert (code, err) == (0, "")
    assert "status:      2432/2880 24" in out
    assert "exceptions:  301" in out

    code, out, _ = cow("dump", "cow")
    assert out == "".join(f"{old} {new}\n" for old, new in pairs)
    facts = {"valid": True, "version": 1, "chunk_size": 8}
    assert json.loads(cow("dump", "--json", "cow")[1]) == {
        **facts,
        "exceptions": [list(pair) for pair in pairs],
    }


def test_a_device_without_a_store(cow: Run) -> None:
    Path("cow").write_bytes(bytes(1 << 20))
    Path("origin").write_bytes(bytes(1 << 20))
    assert "no store yet" in cow("info", "cow")[1]
    assert json.loads(cow("dump", "--json", "cow")[1])["exceptions"] == []
    assert cow("check", "cow")[0] == 0
    for words in (("map", "cow"), ("merge", "origin", "cow"), ("diff", "cow", "cow")):
        code, _, err = cow(*words)
        assert code == ExitCode.MISMATCH
        assert "byte 0: the magic is 0" in err
    assert cow("extract", "--origin", "origin", "--cow", "cow", "out")[0] == ExitCode.MISMATCH
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words", [("extract", "--origin", "origin", "--cow", "cow", "out"), ("merge", "origin", "cow")]
)
def test_a_cow_that_lies_over_what_it_is_used_with_is_refused(
    cow: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a partition and its disk: what is merged would be written over the store."""
    make()
    before = [Path(name).read_bytes() for name in ("origin", "cow")]
    whole = (StorageExtent("disk", 0, 1 << 40),)
    fits = {os.stat(name).st_ino for name in ("origin", "cow")}

    def on_one_disk(identity: Any, start: int, length: int) -> tuple[StorageExtent, ...]:
        inode = identity[-1] if isinstance(identity, tuple) else identity
        return whole if inode in fits else (StorageExtent(identity, start, start + length),)

    monkeypatch.setattr(layout, "extents", on_one_disk)
    code, _, err = cow(*words)
    assert (code, "origin and the COW, cow, are the same storage" in err) == (ExitCode.USAGE, True)
    assert [Path(name).read_bytes() for name in ("origin", "cow")] == before
    assert not Path("out").exists()


@pytest.mark.parametrize("chunk_size", [1, 8, 32])
@pytest.mark.parametrize("tail", [0, 1])
def test_extract_and_merge(cow: Run, chunk_size: int, tail: int) -> None:
    pairs = make(chunk_size, tail=tail if chunk_size > 1 else 0)
    code, _, err = cow("extract", "--origin", "origin", "--cow", "cow", "out")
    assert (code, err) == (0, "")
    assert same("out", "snapshot")

    Path("copy").write_bytes(Path("origin").read_bytes())
    code, out, _ = cow(
        *("extract", "--origin", "origin", "--cow", "cow", "copy", "--changed-only", "--json")
    )
    facts = json.loads(out)
    assert (code, facts["ok"], facts["exceptions"]) == (0, True, len(pairs))
    assert same("copy", "snapshot")

    before = Path("cow").read_bytes(), Path("origin").read_bytes()
    assert "would copy 301 chunks" in cow("merge", "origin", "cow", "--dry-run")[1]
    assert before == (Path("cow").read_bytes(), Path("origin").read_bytes())
    assert cow("merge", "origin", "cow")[0] == 0
    assert same("origin", "snapshot")
    assert cow("check", "cow")[0] == 0
    assert json.loads(cow("info", "--json", "cow")[1])["exceptions"] == 0
    assert cow("merge", "origin", "cow")[0] == 0  # nothing left to do


@pytest.mark.parametrize(
    "words",
    [
        ("--origin", "origin", "--cow", "cow"),
        ("--cow", "cow", "origin"),
        ("cow", "--origin", "origin"),
        ("origin", "cow"),
    ],
)
def test_origin_and_cow_are_named_by_option_or_place(cow: Run, words: tuple[str, ...]) -> None:
    make()
    assert "would copy 301 chunks" in cow("merge", *words, "--dry-run")[1]
    assert cow("check", *words)[0] == (0 if "--origin" in words else ExitCode.USAGE)
    assert cow("check", "--cow", "cow")[0] == cow("check", "cow")[0] == 0
    for verb in ("merge", "check"):
        code, out, err = cow(verb, *words, "more")
        assert (code, out) == (ExitCode.USAGE, "")
        assert "each once" in err


@pytest.mark.parametrize("changed_only", [False, True])
def test_a_longer_file_is_cut_where_the_whole_image_is_written(
    cow: Run, changed_only: bool
) -> None:
    """Else the rest of what was there would be taken for the snapshot's."""
    make()
    size, longer = Path("origin").stat().st_size, b"x" * 5000
    Path("out").write_bytes(Path("origin").read_bytes() + longer)
    option = ["--changed-only"] if changed_only else []
    assert cow("extract", "--origin", "origin", "--cow", "cow", "out", *option)[0] == 0
    assert Path("out").read_bytes()[:size] == Path("snapshot").read_bytes()
    assert Path("out").read_bytes()[size:] == (longer if changed_only else b"")


def test_a_longer_file_that_cannot_be_cut_is_no_image(
    cow: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    Path("out").write_bytes(Path("origin").read_bytes() + bytes(512))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "append only")

    monkeypatch.setattr(os, "ftruncate", refuse)
    code, _, err = cow("extract", "--origin", "origin", "--cow", "cow", "out")
    assert code == ExitCode.FAILED
    assert "out: cannot cut it: Operation not permitted" in err


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_files_are_opened_as_the_chunks_need_it(
    cow: Run, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Direct I/O may want larger blocks than the chunks are; it is given up there only."""
    measure, asked = geometry.measure, list[tuple[str, bool | None]]()

    def large(path: str, fd: int, *, is_block: bool, direct: bool | None) -> geometry.Geometry:
        shape = measure(path, fd, is_block=is_block, direct=direct)
        if path not in ("origin", "out"):
            return shape
        asked.append((path, direct))
        return shape if direct is False else shape._replace(logical_block_size=4096)

    monkeypatch.setattr(geometry, "measure", large)
    make(chunk_size, changed=100)
    for words, name in (
        (("extract", "--origin", "origin", "--cow", "cow", "out"), "out"),
        (("merge", "origin", "cow"), "origin"),
    ):
        assert cow(*words)[0] == 0
        assert same(name, "snapshot")
    assert {path for path, direct in asked if direct is False} == (
        {"origin", "out"} if chunk_size == 1 else set()
    )


@pytest.mark.parametrize("is_new", [False, True])
def test_an_extract_that_fails_says_what_is_left_of_it(
    cow: Run, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    if not is_new:
        Path("out").write_bytes(Path("origin").read_bytes() + bytes(512))

    def fail(_: Mover, device: BlockDevice) -> None:
        raise DeviceError(device.path, "flush it", errno.ENOSPC)

    monkeypatch.setattr(Mover, "flush", fail)
    code, out, err = cow("extract", "--origin", "origin", "--cow", "cow", "out", "--json")
    assert (code, out, Path("out").exists()) == (ExitCode.FAILED, "", not is_new)
    assert "cannot flush it: No space left" in err
    assert ("out is not complete" in err) == (not is_new)


def test_changed_only_makes_a_sparse_file(cow: Run) -> None:
    make()
    os.truncate("origin", 64 << 20)
    assert cow("extract", "--origin", "origin", "--cow", "cow", "out", "--changed-only")[0] == 0
    status = Path("out").stat()
    assert status.st_size == 64 << 20
    assert status.st_blocks * 512 < 8 << 20


def test_extract_dry_run_makes_nothing(cow: Run) -> None:
    make()
    code, out, _ = cow("extract", "--origin", "origin", "--cow", "cow", "out", "--dry-run")
    assert (code, "would write 4800s" in out) == (0, True)
    assert not Path("out").exists()


def test_an_invalidated_store(cow: Run) -> None:
    make(valid=False)
    before = Path("origin").read_bytes()
    for words in (
        ("merge", "origin", "cow"),
        ("extract", "--origin", "origin", "--cow", "cow", "x"),
    ):
        code, _, err = cow(*words)
        assert code == ExitCode.MISMATCH
        assert "byte 4: the snapshot was invalidated" in err
        assert "--changed-only" in err
    assert Path("origin").read_bytes() == before
    assert not Path("x").exists()
    code, _, err = cow("extract", "--origin", "origin", "--cow", "cow", "x", "--changed-only")
    assert (code, "was invalidated; what is in its store is good" in err) == (0, True)
    assert cow("check", "cow")[0] == 0
    assert "status:      Invalid" in cow("info", "cow")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge", "cow", "cow"], "are the same"),
        (["merge", "link", "cow"], "are the same"),
        (["extract", "--origin", "cow", "--cow", "cow", "x"], "are the same"),
        (["extract", "--origin", "origin", "--cow", "cow", "cow"], "are the same"),
        (["extract", "--origin", "origin", "--cow", "cow", "origin"], "overlaps the source"),
        (["extract", "--origin", "origin", "--cow", "cow", "small"], "small is too small"),
        (["merge", "nothing", "cow"], "nothing: there is no such device or file"),
        (["merge", "origin", "nothing"], "nothing: there is no such device or file"),
        (["diff", "cow"], "a second store to compare with, or --origin"),
        (["diff", "cow", "cow", "--origin", "origin"], "one of the two"),
        (["diff", "cow", "other"], "different chunks cannot be compared"),
        (["map", "cow", "--svg", "cow"], "cow cannot be the picture"),
        (["map", "cow", "--width", "0"], "--width is a number of blocks"),
    ],
)
def test_what_cannot_be(cow: Run, words: list[str], said: str) -> None:
    make()
    Path("link").symlink_to("cow")
    Path("small").write_bytes(bytes(4096))
    Path("other").write_bytes(build(16, allocate([1], 16), 10))
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    code, out, err = cow(*words)
    assert (code, out) == (ExitCode.USAGE, "")
    assert said in err
    assert before == {path.name: path.read_bytes() for path in Path().iterdir()}


def test_what_is_in_use(cow: Run) -> None:
    import fcntl

    make()
    with open("cow", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = cow("merge", "origin", "cow")
        assert (code, "cow is in use by" in err) == (ExitCode.BUSY, True)
        assert cow("info", "cow")[0] == 0  # a reader harms nothing


def test_a_damaged_store_is_left_alone(cow: Run) -> None:
    make()
    with open("cow", "r+b") as file:
        file.seek(4096 + 8)
        file.write(b"\xff" * 8)
    before = Path("cow").read_bytes(), Path("origin").read_bytes()
    for words in (
        ("merge", "origin", "cow"),
        ("extract", "--origin", "origin", "--cow", "cow", "x"),
    ):
        code, _, err = cow(*words)
        assert code == ExitCode.MISMATCH
        assert "cow: byte 4104: " in err
    code, out, _ = cow("check", "--json", "cow")
    facts = json.loads(out)
    assert (code, facts["errors"], facts["problems"][0]["offset"]) == (4, 1, 4104)
    assert before == (Path("cow").read_bytes(), Path("origin").read_bytes())
    assert not Path("x").exists()


def test_an_interrupted_merge_goes_on(cow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    monkeypatch.setattr(merging, "BATCH_BYTES", 256 << 10)
    flush, flushes = Mover.flush, list[object]()

    def interrupting(self: Mover, device: object) -> None:
        flush(self, device)  # type: ignore[arg-type]
        flushes.append(device)
        if len(flushes) == 4:
            os.kill(os.getpid(), 2)

    monkeypatch.setattr(Mover, "flush", interrupting)
    code, out, err = cow("merge", "origin", "cow", "--json")
    facts = json.loads(out)
    merged = facts["merged"]
    assert (code, facts["interrupted"], len(flushes)) == (ExitCode.INTERRUPTED, True, 4)
    assert 128 <= merged < 301
    assert f"{merged} of 301 exceptions are merged; the same command resumes from here" in err
    assert json.loads(cow("info", "--json", "cow")[1])["exceptions"] == 301 - merged
    assert cow("merge", "origin", "cow")[0] == 0
    assert same("origin", "snapshot")


def test_an_interrupted_extract_says_so(cow: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    run = Mover.run

    def interrupting(self: Mover, moves: object) -> None:
        os.kill(os.getpid(), 2)
        run(self, moves)  # type: ignore[arg-type]

    monkeypatch.setattr(Mover, "run", interrupting)
    code, _, err = cow("extract", "--origin", "origin", "--cow", "cow", "out")
    assert (code, "out is not complete" in err) == (ExitCode.INTERRUPTED, True)


def test_diff_of_a_store_and_its_origin(cow: Run) -> None:
    pairs = dict(make())
    origin, store = bytearray(Path("origin").read_bytes()), Path("cow").read_bytes()
    unchanged = sorted(pairs)[10:40]
    for old in unchanged:
        new = pairs[old]
        origin[old * 4096 : (old + 1) * 4096] = store[new * 4096 : (new + 1) * 4096]
    Path("origin").write_bytes(origin)
    code, out, _ = cow("diff", "cow", "--origin", "origin", "--json")
    facts = json.loads(out)
    assert (code, facts["same"]) == (ExitCode.MISMATCH, False)
    spread = {
        kind: [old + k for old, count in spans for k in range(count)]
        for kind, spans in facts["chunks"].items()
    }
    assert spread["same"] == unchanged
    assert spread["differs"] == sorted(set(pairs) - set(unchanged))
    assert cow("merge", "origin", "cow")[0] == 0
    assert cow("diff", "cow", "--origin", "origin")[0] == 0


def test_diff_of_two_stores(cow: Run) -> None:
    one = allocate([1, 2, 3, 10, 11, 12, 700], 8)
    two = allocate([3, 2, 10, 11, 12, 13], 8)
    a, b = build(8, one, 20, seed=1), build(8, two, 20, seed=2)
    places = dict(one), dict(two)
    for old in (2, 10, 11):
        to, at = places[1][old] * 4096, places[0][old] * 4096
        b[to : to + 4096] = a[at : at + 4096]
    Path("a").write_bytes(a)
    Path("b").write_bytes(b)
    code, out, err = cow("diff", "a", "b")
    assert code == ExitCode.MISMATCH
    assert out.splitlines() == [
        *("1 only in A", "3 differs", "12 differs", "13 only in B", "700 only in A")
    ]
    assert err == "chunks: 2 only in A, 1 only in B, 2 differs, 3 same\n"
    assert cow("diff", "a", "a")[0] == 0


def test_diff_of_chunks_that_were_allocated_in_another_order(cow: Run) -> None:
    """Neighbours are read together only where they are neighbours in both, and ascending."""
    Path("a").write_bytes(a := build(8, [(1, 5), (2, 4), (3, 3), (4, 2), (5, 6)], 8))
    b = build(8, [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6)], 8, seed=2)
    for at, to in ((5, 2), (4, 3), (3, 4), (2, 5), (6, 6)):
        b[to * 4096 : (to + 1) * 4096] = a[at * 4096 : (at + 1) * 4096]
    Path("b").write_bytes(b)
    assert cow("diff", "a", "b")[0] == 0
    assert cow("diff", "b", "a")[0] == 0


def test_a_map_ends_with_the_origin(cow: Run) -> None:
    """Also where the last cell has room for a chunk more."""
    Path("cow").write_bytes(build(8, allocate([0, 32], 8), 10))
    Path("origin").write_bytes(bytes(32 * 4096 + 512))
    code, out, _ = cow("map", "cow", "--origin", "origin", "--width", "2", "--json")
    facts = json.loads(out)
    assert (code, facts["chunks"], sum(facts["cells"])) == (0, 33, 2)
    Path("origin").write_bytes(bytes(32 * 4096))
    code, _, err = cow("map", "cow", "--origin", "origin", "--width", "3")
    assert code == ExitCode.MISMATCH
    assert "chunk 32 is past the end of the origin, which has 32 chunks" in err


def test_diff_reads_large_chunks_in_pieces(cow: Run) -> None:
    pairs = allocate([0, 2], 8192)
    Path("a").write_bytes(build(8192, pairs, 4))
    data = bytearray(Path("a").read_bytes())
    data[-1] ^= 1
    Path("b").write_bytes(data)
    assert cow("diff", "a", "b")[1] == "2 differs\n"


def test_map(cow: Run) -> None:
    Path("cow").write_bytes(build(8, allocate([0, *range(8, 16), 17, 18, 19, 30], 8), 30))
    os.truncate("cow", 1 << 20)
    Path("origin").write_bytes(bytes(32 * 4096))
    code, out, _ = cow("map", "cow", "--origin", "origin", "--width", "4")
    assert code == 0
    assert out.splitlines() == [
        "13 of 32 chunks changed: 52 KiB, 40.6%",
        "      0 B █···",
        "   16 KiB ····",
        "   32 KiB ████",
        "   48 KiB ████",
        "   64 KiB ·███",
        "   80 KiB ····",
        "   96 KiB ····",
        "  112 KiB ··█·",
        "· none  ░ some  ▒ half  ▓ most  █ all changed    a block is 4 KiB (1 chunk)",
    ]
    code, out, _ = cow("map", "cow", "--json", "--width", "1")
    facts = json.loads(out)
    assert (facts["chunks"], facts["chunks_per_cell"], sum(facts["cells"])) == (31, 2, 13)


def test_a_map_tells_which_byte_names_a_chunk_that_the_origin_does_not_have(cow: Run) -> None:
    Path("cow").write_bytes(build(8, allocate([0, 1, 40, 2], 8), 30))
    Path("origin").write_bytes(bytes(32 * 4096))
    code, _, err = cow("map", "cow", "--origin", "origin")
    assert code == ExitCode.MISMATCH
    assert "cow: byte 4128: chunk 40 is past the end of the origin, which has 32 chunks" in err
    os.truncate("origin", 0)
    assert (
        "chunk 0 is past the end of the origin, which has 0"
        in cow("map", "cow", "--origin", "origin")[2]
    )


def test_map_of_an_empty_store(cow: Run) -> None:
    Path("cow").write_bytes(build(8, [], 10))
    assert cow("map", "cow")[1].startswith("0 of 0 chunks changed: 0 B, 0%\n")
    assert cow("map", "cow", "--svg", "map.svg")[0] == 0


def test_map_as_svg(cow: Run) -> None:
    make()
    code, out, err = cow("map", "cow", "--origin", "origin", "--svg", "map.svg")
    assert (code, out) == (0, "")
    assert "map.svg: 301 of 600 chunks changed" in err
    root = ElementTree.parse("map.svg").getroot()
    rectangles = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(rectangles) == 1 + 600 + 5  # the background, the chunks, the legend
    assert json.loads(cow("map", "--json", "cow", "--svg", "map.svg")[1])["changed"] == 301


@pytest.mark.parametrize("name", ["/dev/null", "folder"])
def test_a_picture_goes_over_files_only(cow: Run, name: str) -> None:
    make()
    Path("folder").mkdir()
    code, _, err = cow("map", "cow", "--svg", name)
    assert (code, f"{name} is no regular file" in err) == (ExitCode.USAGE, True)
    assert not Path("/dev/null").is_file()


def test_map_as_png(cow: Run) -> None:
    make()
    code, _, err = cow("map", "cow", "--png", "map.png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert code == ExitCode.MISSING
        assert "pip install 'dmcopy[plot]'" in err
        assert not Path("map.png").exists()
    else:
        assert code == 0
        assert Path("map.png").read_bytes().startswith(b"\x89PNG")
