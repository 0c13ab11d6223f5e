"""Maps on real files: what lies beside them, kills between two files, and maps of ddrescue's."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcopy.errors import DeviceError, ExitCode, MetadataError, UsageError
from dmcopy.ranges import RangeSet
from dmcopy.transfer import (
    TransferOptions,
    TransferOutcome,
    TransferRequest,
    TransferSession,
    mapfile,
    open_all,
    state,
)
from dmcopy.transfer import store as stores
from dmcopy.transfer.destination import FailedRange
from dmcopy.transfer.identity import Identity
from dmcopy.transfer.mapping import inward
from dmcopy.transfer.plan import find_holes
from dmcopy.transfer.state import DestState, Endpoint, TransferState

SECTORS = 64
SIZE = SECTORS * 512


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("src").write_bytes(os.urandom(SIZE))
    return tmp_path


def copy(
    *dests: str, start: int = 0, count: int | None = None, **options: object
) -> TransferOutcome:
    options = {"backend": "threads", "map_path": "m"} | options
    with open_all(TransferRequest("src", dests, start, 0, count)) as opened:
        try:
            return TransferSession(opened, TransferOptions(**options)).run()  # type: ignore[arg-type]
        except BaseException:
            opened.discard_created()
            raise


def content(*names: str) -> list[bytes]:
    return [Path(name).read_bytes() for name in names]


def blocks(path: str = "m") -> list[tuple[int, int, str]]:
    """Return a map's blocks, in sectors."""
    found = mapfile.parse(Path(path).read_text()).blocks
    return [(block.position >> 9, block.size >> 9, block.status) for block in found]


def write_map(*ranges: tuple[int, int, str]) -> str:
    """Write a map as ddrescue would, of (position, size, status) in sectors."""
    text = mapfile.build(
        mapfile.MapFile(tuple(mapfile.Block(p << 9, n << 9, s) for p, n, s in ranges))
    )
    Path("m").write_text(text)
    return text


def link_to_null(path: str) -> None:
    os.symlink("/dev/null", path)


class TestBeside:
    """Files beside the map that are not ours."""

    @pytest.mark.parametrize("name", ["m.new", "m.dests.new", "m~", "m.bak", "m.tmp", ".m.swp"])
    def test_one_may_be_the_destination_and_another_the_source(self, name: str) -> None:
        os.rename("src", "kept")
        for source, dest in (("kept", name), (name, "copy")):
            Path("m").unlink(missing_ok=True)
            Path("m.dests").unlink(missing_ok=True)
            with open_all(TransferRequest(source, (dest,))) as opened:
                assert (
                    TransferSession(opened, TransferOptions(map_path="m")).run().exit_code
                    == ExitCode.OK
                )
        assert len({*content("kept", name, "copy")}) == 1
        assert sorted(os.listdir()) == sorted(["kept", name, "copy", "m", "m.dests"])

    def test_a_companion_without_a_map_is_somebodys(self) -> None:
        Path("m.dests").write_text("precious")
        with pytest.raises(UsageError, match=r"m\.dests is there without a map m"):
            copy("a")
        assert content("m.dests") == [b"precious"]
        assert sorted(os.listdir()) == ["m.dests", "src"]

    @pytest.mark.parametrize("name", ["m", "m.dests"])
    @pytest.mark.parametrize(
        "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)]
    )
    def test_what_is_no_file_is_refused(self, name: str, make: Callable[[str], object]) -> None:
        """A pipe would hang, and a device's node would be gone."""
        make(name)
        before = os.lstat(name)
        with pytest.raises(UsageError, match=f"{name} is no regular file"):
            copy("a")
        assert (os.lstat(name).st_ino, os.lstat(name).st_mode) == (before.st_ino, before.st_mode)
        assert os.path.exists("/dev/null")

    @pytest.mark.parametrize(
        ("path", "dest", "says"),
        [
            ("src", "a", "src cannot be the map: it is src"),
            ("a", "a", "a cannot be the map: it is a"),
            ("m", "m.dests", "m.dests cannot be the map: it is m.dests"),
            ("hard", "a", "hard cannot be the map: it is src"),
            ("soft", "a", "soft cannot be the map: it is a"),
            ("twin", "a", "twin cannot be the map: twin.dests is the same"),
        ],
    )
    @pytest.mark.parametrize("dry", [False, True])
    def test_every_name_is_held_against_source_and_destinations(
        self, path: str, dest: str, says: str, dry: bool
    ) -> None:
        os.link("src", "hard")
        os.symlink("a", "soft")
        os.symlink("twin", "twin.dests")
        Path("b").write_bytes(bytes(SIZE))
        before = sorted(os.listdir())
        with open_all(TransferRequest("src", (dest, "b")), create=not dry) as opened:
            with pytest.raises(UsageError, match=says):
                TransferSession(opened, TransferOptions(map_path=path))
            opened.discard_created()
        assert sorted(os.listdir()) == before

    def test_a_link_stays_one(self) -> None:
        os.mkdir("far")
        os.symlink("far/map", "m")
        assert copy("a").exit_code == ExitCode.OK
        assert os.readlink("m") == "far/map"
        assert os.listdir("far") == ["map"]
        assert copy("a").resumed == SECTORS

    @pytest.mark.parametrize("good", [0, 1])
    def test_nothing_is_left_when_the_first_cannot_be_saved(
        self, good: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_after(monkeypatch, good, OSError(errno.ENOSPC, "full"))
        with pytest.raises(DeviceError, match="cannot save the map: No space left"):
            copy("a")
        assert os.listdir() == ["src"]

    def test_one_that_cannot_be_saved_any_more_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_after(monkeypatch, 2, OSError(errno.ENOSPC, "full"))
        outcome = copy("a")
        assert (outcome.exit_code, outcome.map_error) == (ExitCode.OK, "No space left on device")
        assert blocks() == [(0, SECTORS, "?")]


def fail_after(monkeypatch: pytest.MonkeyPatch, good: int, error: BaseException) -> list[str]:
    """Let the replacements of files fail after some; return what was replaced."""
    replaced: list[str] = []

    def keep(path: str, text: bytes) -> None:
        if len(replaced) == good:
            raise error
        replaced.append(path)
        Path(os.path.realpath(path)).write_bytes(text)

    monkeypatch.setattr(stores, "replace_file", keep)
    return replaced


class Killed(BaseException):
    """Stands for a kill -9: nothing is cleaned up by those who wait for an Exception."""


@pytest.mark.parametrize("good", range(5))
@pytest.mark.parametrize("earlier", ["nothing", "a whole copy", "a copy to a file that is gone"])
def test_a_kill_between_two_files_is_gone_on_from(
    good: int, earlier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is the copy refused afterwards nor anything called done that is not."""
    if earlier == "nothing":
        Path("a").write_bytes(bytes(SIZE))
    else:
        assert copy("a").exit_code == ExitCode.OK
    if earlier == "a copy to a file that is gone":
        os.unlink("a")
    monkeypatch.setattr(
        TransferSession, "_save", lambda session, transfer: session._store.save(transfer)
    )
    monkeypatch.setattr(stores.StateStore, "remove", lambda _: None)
    with monkeypatch.context() as context:
        fail_after(context, good, Killed())
        with open_all(TransferRequest("src", ("a",))) as opened, suppress(Killed):
            TransferSession(opened, TransferOptions(map_path="m", backend="threads")).run()
    if good < 2 and earlier == "a copy to a file that is gone":
        # What is known is still of the file before, so this one is another's.
        with pytest.raises(UsageError, match="that was another file or device of this name"):
            copy("a")
        return
    assert copy("a").exit_code == ExitCode.OK
    assert len({*content("src", "a")}) == 1


def test_a_map_says_where_the_first_is_that_is_not_done() -> None:
    """As ddrescue's does: at the end when all is."""
    copy("a")
    content = mapfile.parse(Path("m").read_text())
    assert (content.position, content.status) == (SIZE, "+")
    Path("m.dests").unlink()
    write_map((0, 40, "?"), (40, 8, "-"), (48, 16, "?"))
    copy("a", on_error="skip")
    content = mapfile.parse(Path("m").read_text())
    assert (content.position, content.status) == (40 << 9, "?")


def test_which_file_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two leaves a map that calls nothing done that is not known."""
    replaced = fail_after(monkeypatch, 100, Killed())
    copy("a")
    assert replaced == ["m", "m.dests", "m.dests", "m"]


class TestDdrescue:
    """Maps that another program began or continued."""

    HALF = ((0, 32, "+"), (32, 32, "?"))

    @pytest.fixture(autouse=True)
    def dest(self) -> None:
        Path("a").write_bytes(bytes(SIZE))
        Path("b").write_bytes(bytes(SIZE))

    def test_one_that_calls_nothing_done_needs_no_trust(self) -> None:
        write_map((0, 32, "?"), (32, 8, "*"), (40, 8, "/"), (48, 16, "-"))
        assert copy("a").exit_code == ExitCode.OK
        assert content("a") == content("src")

    def test_one_that_calls_something_done_is_not_believed(self) -> None:
        text = write_map(*self.HALF)
        with pytest.raises(UsageError, match=r"where the 32s .* are that it calls done: give --tr"):
            copy("a")
        assert (Path("m").read_text(), content("a")) == (text, [bytes(SIZE)])
        assert not os.path.exists("m.dests")

    def test_what_is_trusted_is_not_copied_again_to_any(self) -> None:
        write_map(*self.HALF)
        assert copy("a", "b", "new", trust_map=True).exit_code == ExitCode.OK
        half = bytes(SIZE // 2) + content("src")[0][SIZE // 2 :]
        assert content("a", "b", "new") == [half, half, *content("src")], "a new file has nothing"
        assert blocks() == [(0, SECTORS, "+")]
        assert copy("b", "a", "new").resumed == 3 * SECTORS, "once told, it is known"

    def test_only_whole_sectors_are_taken_for_done(self) -> None:
        Path("m").write_text("0 ? 1\n0 700 +\n700 324 +\n1024 511 +\n1535 1 ?\n1536 31232 +\n")
        Path("src").write_bytes(b"x" * SIZE)
        assert copy("a", trust_map=True).exit_code == ExitCode.OK
        assert content("a") == [bytes(1024) + b"x" * 512 + bytes(SIZE - 1536)]

    def test_bad_blocks_are_left_alone_until_they_are_retried(self) -> None:
        write_map((0, 16, "+"), (16, 16, "-"), (32, 32, "?"))
        outcome = copy("a", trust_map=True, on_error="skip")
        assert outcome.transfer.bad.ranges() == RangeSet([(16, 32)])
        assert content("a") == [bytes(SIZE // 2) + content("src")[0][SIZE // 2 :]]
        assert copy("a", on_error="skip", retry=True).exit_code == ExitCode.OK
        assert content("a")[0][8192:] == content("src")[0][8192:]

    def test_what_it_says_of_the_rest_of_the_device_is_kept(self) -> None:
        write_map((0, 8, "+"), (8, 8, "-"), (16, 40, "?"), (56, 8, "/"))
        assert copy("a", start=12, count=28, trust_map=True, on_error="skip").transfer.bad.total()
        assert blocks() == [
            *((0, 8, "+"), (8, 8, "-"), (16, 24, "+")),
            *((40, 16, "?"), (56, 8, "/")),
        ]
        assert content("a")[0][4 * 512 : 28 * 512] == content("src")[0][16 * 512 : 40 * 512]

    def test_one_of_another_part_of_the_device_is_filled_up(self) -> None:
        write_map((0, 8, "+"))
        assert copy("a", start=16, count=8).exit_code == ExitCode.OK
        assert blocks() == [(0, 8, "+"), (8, 8, "?"), (16, 8, "+")]

    def test_one_that_was_gone_on_with(self) -> None:
        """What ddrescue rescued is neither called bad again nor believed to be anywhere."""
        assert copy("a").exit_code == ExitCode.OK
        known = state.parse(Path("m.dests").read_text(), "m.dests")
        half = replace(known.destinations[0], written=RangeSet([(0, 32)]))
        bad = (FailedRange(32, 64, errno.EIO),)
        Path("m.dests").write_text(state.build(replace(known, errors=bad, destinations=(half,))))
        text = write_map((0, 64, "+"))
        for skip in ("skip", "stop"):
            with pytest.raises(UsageError, match="another program continued with m"):
                copy("a", on_error=skip)
        assert Path("m").read_text() == text
        outcome = copy("a", trust_map=True, on_error="skip")
        assert (outcome.exit_code, outcome.resumed) == (ExitCode.OK, SECTORS)
        assert blocks() == [(0, SECTORS, "+")]

    def test_a_doubt_about_a_destination_ends_with_trust(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        doubtful = Identity(doubt="it has no number that it is known by")
        monkeypatch.setattr(stores, "identify", lambda _: doubtful)
        assert copy("a").exit_code == ExitCode.OK
        says = "src may be another .* no number .* give --trust-map"
        with pytest.raises(UsageError, match=says):
            copy("a")
        assert copy("a", trust_map=True).resumed == SECTORS


@pytest.mark.parametrize(("start", "count"), [(0, 16), (16, 32), (8, 24)])
def test_a_map_is_of_one_range(start: int, count: int) -> None:
    """Its offsets mean other sectors of the device where the copy begins or ends elsewhere."""
    assert copy("a", start=0, count=32).exit_code == ExitCode.OK
    before = content("m", "m.dests", "a")
    with pytest.raises(UsageError, match=r"m is the map of sectors 0\+32 of src"):
        copy("a", start=start, count=count)
    assert content("m", "m.dests", "a") == before


def test_a_map_of_another_source_names_it() -> None:
    """And says that it was of the same name only where it was."""
    copy("a")
    os.rename("src", "before")
    Path("src").write_bytes(os.urandom(SIZE))
    with pytest.raises(UsageError, match="copy of src, which was another file or device of this"):
        copy("a")
    os.rename("src", "other")
    with open_all(TransferRequest("other", ("a",))) as opened:
        session = TransferSession(opened, TransferOptions(backend="threads", map_path="m"))
        with pytest.raises(UsageError, match="m is the map of a copy of src: give another --map"):
            session.run()


def test_a_destination_that_is_left_out_would_be_forgotten() -> None:
    assert copy("a", "b").exit_code == ExitCode.OK
    with pytest.raises(UsageError, match="m is the map of a copy that also goes to b: give the"):
        copy("a")
    assert copy("a", trust_map=True).resumed == SECTORS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def example() -> TransferState:
    place = Endpoint("/dev/a", Identity("wwn 1", "boot 2"), 100, 8)
    written, failed = RangeSet([(0, 8), (16, 24)]), (FailedRange(8, 16, errno.ENOSPC),)
    bad = (FailedRange(24, 32, errno.EIO),)
    return TransferState(place, 64, bad, (DestState(place, 64, written, failed),))


def test_a_state_is_read_back_as_it_was() -> None:
    assert state.parse(state.build(example()), "m.dests") == example()


@given(st.data(), json_values)
def test_any_change_of_a_state_is_a_state_or_refused(data: st.DataObject, value: object) -> None:
    """Whatever JSON may stand anywhere in it: no exception but the one that is a sentence."""
    whole = json.loads(state.build(example()))
    holder, key = data.draw(st.sampled_from(list(places(whole))))
    if data.draw(st.booleans()):
        holder[key] = value
    else:
        del holder[key]
    with suppress(MetadataError):
        found = state.parse(json.dumps(whole), "m.dests")
        ranges = [pair for dest in found.destinations for pair in dest.written]
        assert all(0 <= low < high <= found.count for low, high in ranges)


def places(value: object) -> list[tuple[Any, Any]]:
    """Return every (holder, key) in a JSON value."""
    mine: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        mine = [(value, key) for key in value]
    elif isinstance(value, list):
        mine = [(value, index) for index in range(len(value))]
    return mine + [place for holder, key in mine for place in places(holder[key])]


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, "9" * 5000, "NaN", "\x00", "\udc80", '{"format": 1}', "null"]
)
def test_any_text_that_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(MetadataError, match="is not what this dmcopy writes"):
        state.parse(text, "m.dests")


@pytest.mark.parametrize("value", [{}, "", 0, True, None])
@pytest.mark.parametrize("key", ["destinations", "errors", "count"])
def test_what_is_of_another_kind_is_refused(key: str, value: object) -> None:
    """An empty object is no empty list: it would read as a state in which nothing was done."""
    whole = json.loads(state.build(example())) | {key: value}
    with pytest.raises(MetadataError):
        state.parse(json.dumps(whole), "m.dests")


@pytest.mark.parametrize("value", [None, 0, [], {}])
@pytest.mark.parametrize(
    "place",
    [
        ("source", "path"),
        ("source", "identity", "always"),
        ("destinations", 0, "path"),
        ("destinations", 0, "identity", "boot"),
        ("destinations", 0, "identity", "doubt"),
        ("destinations", 0, "failed", 0, 2),
        ("errors", 0, 2),
    ],
)
def test_what_is_no_text_is_refused(place: tuple[Any, ...], value: object) -> None:
    """A name would be looked for that none has, or an identity be taken for one in doubt."""
    whole = holder = json.loads(state.build(example()))
    *way, last = place
    for step in way:
        holder = holder[step]
    assert isinstance(holder[last], str)
    holder[last] = value
    with pytest.raises(MetadataError, match="is not what this dmcopy writes"):
        state.parse(json.dumps(whole), "m.dests")


@pytest.mark.parametrize("name", ["m", "m.dests"])
@pytest.mark.parametrize(
    "garbage", [b"", b"\xff\xfe\x00", b"0x0 ? 1\n0x0 0x", b"\x1b[31m\n", b"{}"]
)
def test_damage_writes_nothing(name: str, garbage: bytes) -> None:
    assert copy("a").exit_code == ExitCode.OK
    Path("a").write_bytes(bytes(SIZE))
    Path(name).write_bytes(garbage)
    before = content("m", "m.dests", "a")
    with pytest.raises(MetadataError) as raised:
        copy("a")
    assert str(raised.value).isprintable()
    assert content("m", "m.dests", "a") == before


def test_what_is_far_too_long_is_no_map() -> None:
    assert copy("a").exit_code == ExitCode.OK
    os.truncate("m", 1 << 40)
    with pytest.raises(MetadataError, match="far too long"):
        copy("a")


def test_a_map_may_be_as_long_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte more or less must not lose what was rescued."""
    assert copy("a").exit_code == ExitCode.OK
    length = max(os.path.getsize(name) for name in ("m", "m.dests"))
    monkeypatch.setattr(stores, "_MOST_BYTES", length)
    assert copy("a").resumed == SECTORS
    monkeypatch.setattr(stores, "_MOST_BYTES", length - 1)
    with pytest.raises(MetadataError, match="far too long"):
        copy("a")


@pytest.mark.parametrize(
    ("block", "whole"),
    [(1, [(3, 21), (30, 64)]), (8, [(8, 16), (32, 64)]), (16, [(32, 64)]), (32, [(32, 64)])],
)
def test_blocks_that_have_grown_are_done_when_all_of_them_is(
    block: int, whole: list[tuple[int, int]]
) -> None:
    """Else the rest of a block would never be copied."""
    assert inward(RangeSet([(3, 21), (30, 70)]), block, 64) == RangeSet(whole)


def test_holes_are_whole_blocks() -> None:
    """Else data beside a hole would be called zeroes, and lost."""
    with open("src", "wb") as file:
        file.truncate(1 << 20)
        for page in (5, 6, 40):
            file.seek(page << 12)
            file.write(b"x")
    with open_all(TransferRequest("src", ("a",))) as opened:
        assert opened.source is not None
        found = {block: find_holes(opened.source, block) for block in (8, 32, 64)}
        shifted = find_holes(opened.source.slice(8, 2000), 64)
    assert found[8] == RangeSet([(0, 40), (56, 320), (328, 2048)])
    assert found[32] == RangeSet([(0, 32), (64, 320), (352, 2048)])
    assert found[64] == RangeSet([(64, 320), (384, 2048)])
    assert shifted == RangeSet([(64, 256), (320, 2000)])


@pytest.mark.parametrize("told_until", [0, 1 << 16])
def test_where_data_lies_cannot_be_told_there_are_no_holes(
    told_until: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk: what it has would be taken for zeroes, from there on, and lost."""
    lseek = os.lseek

    def refuse(fd: int, position: int, whence: int) -> int:
        if whence == os.SEEK_DATA and position >= told_until:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return lseek(fd, position, whence)

    with open("src", "wb") as file:
        file.truncate(1 << 20)
        for position in (1 << 15, 1 << 18):
            file.seek(position)
            file.write(b"x")
    with open_all(TransferRequest("src", ("a",))) as opened:
        assert opened.source is not None
        assert find_holes(opened.source, 8)
        monkeypatch.setattr(os, "lseek", refuse)
        assert not find_holes(opened.source, 8)


def test_data_that_begins_or_ends_within_a_sector_makes_it_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """File systems whose blocks are bytes say so; the rest of the sector is not a hole."""
    monkeypatch.setattr("dmcopy.transfer.plan._data", lambda *_: [(1023, 1025), (5 * 512, 6 * 512)])
    with open_all(TransferRequest("src", ("a",))) as opened:
        assert opened.source is not None
        assert find_holes(opened.source, 1) == RangeSet([(0, 1), (3, 5), (6, SECTORS)])
        assert find_holes(opened.source, 2) == RangeSet([(6, SECTORS)])
