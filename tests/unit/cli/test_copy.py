"""dmcopy copy and dmcopy zero on files: results, exit codes, and one sentence for bad input."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from dmcopy.io import threads
from dmcopy.io.request import Request

Run = Callable[..., tuple[int, str, str]]
SIZE = 3 << 20


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in `tmp_path`, where `src` holds 3 MiB; return code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DMCOPY_IO", raising=False)
    Path("src").write_bytes(os.urandom(SIZE))

    def run(*words: str) -> tuple[int, str, str]:
        try:
            code = main(words)
        except SystemExit as stop:  # argparse's own refusals
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def same(*names: str) -> bool:
    return len({Path(name).read_bytes() for name in ("src", *names)}) == 1


@pytest.mark.parametrize("io", ["threads", "uring", "auto"])
@pytest.mark.parametrize("depth", ["1", "8"])
def test_one_to_three(run: Run, io: str, depth: str) -> None:
    forced = [] if io == "auto" else ["--io", io]
    code, out, err = run("copy", "src", "a", "b", "c", "--verify", "--depth", depth, *forced)
    if "does not work here" in err:
        pytest.skip(err)
    assert (code, err) == (0, "")
    assert out.count("ok, verified") == 3
    assert same("a", "b", "c")


@pytest.mark.parametrize("size", [512, 513 * 512, (1 << 20) + 512])
def test_odd_lengths(run: Run, size: int) -> None:
    Path("src").write_bytes(os.urandom(size))
    assert run("copy", "src", "a", "--verify")[0] == 0
    assert same("a")


def test_a_range_and_nothing_beyond_it(run: Run) -> None:
    Path("a").write_bytes(b"\xff" * SIZE)
    words = ["--from", "1M", "--to", "3s", "--count", "1001", "--piece", "4K", "--pages", "7"]
    assert run("copy", "src", "a", *words)[0] == 0
    source, dest = Path("src").read_bytes(), Path("a").read_bytes()
    assert dest[3 * 512 : 1004 * 512] == source[1 << 20 : (1 << 20) + 1001 * 512]
    assert dest[: 3 * 512] == b"\xff" * (3 * 512)
    assert dest[1004 * 512 :] == b"\xff" * (SIZE - 1004 * 512)


def test_within_one_file_side_by_side(run: Run) -> None:
    source = Path("src").read_bytes()
    assert run("copy", "src", "src", "--to", "2M", "--count", "1M")[0] == 0
    assert Path("src").read_bytes() == source[: 2 << 20] + source[: 1 << 20]


def test_sparse_keeps_holes_and_makes_new_ones(run: Run) -> None:
    with open("src", "wb") as file:
        file.truncate(32 << 20)
        file.write(b"x" * 8192)
        file.seek(20 << 20)
        file.write(bytes(4 << 20))  # zeroes that take space
    Path("a").write_bytes(b"\xff" * (32 << 20))
    assert run("copy", "src", "a", "--sparse", "--verify")[0] == 0
    assert same("a")
    assert os.stat("a").st_blocks < os.stat("src").st_blocks < 16384


def test_zero(run: Run) -> None:
    Path("a").write_bytes(b"\xff" * SIZE)
    assert run("zero", "a", "--to", "1M", "--count", "1M", "--verify")[0] == 0
    one = b"\xff" * (1 << 20)
    assert Path("a").read_bytes() == one + bytes(1 << 20) + one
    assert run("zero", "a", "src")[0] == 0
    assert same("a")
    assert Path("src").read_bytes() == bytes(SIZE)


def test_zero_files_of_different_length(run: Run) -> None:
    Path("a").write_bytes(b"\xff" * 512)
    assert run("zero", "a", "src", "--verify", "--map", "m")[0] == 0
    assert (Path("a").read_bytes(), Path("src").read_bytes()) == (bytes(512), bytes(SIZE))


def test_json_says_all(run: Run) -> None:
    code, out, err = run("copy", "src", "a", "b", "--json", "--verify", "--progress", "json")
    facts = json.loads(out)
    assert (code, facts["ok"], facts["exit_code"]) == (0, True, 0)
    assert facts["bytes_written"] == 2 * SIZE
    for dest in facts["destinations"]:
        assert (dest["ok"], dest["verified"], dest["failed"]) == (True, True, [])
        assert dest["sectors_written"] == SIZE >> 9
        assert dest["direct"] or dest["buffered_because"]
    assert facts["source"]["read_errors"] == []
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[0]["event"] == "started"
    assert {"copy", "verify"} == {line["phase"] for line in lines[1:]}
    assert lines[-1]["sectors"] == SIZE >> 9


def test_what_is_overwritten_is_named_first(run: Run) -> None:
    """By content and label; of a device the model and serial, too."""
    header = struct.pack("=III16s16s", 1, 255, 0, bytes(range(16)), b"precious")
    swap = (bytes(1024) + header).ljust(4086, b"\0") + b"SWAPSPACE2" + bytes(SIZE)
    for words in (["copy", "src", "old", "new"], ["zero", "old", "--count", "8"]):
        Path("old").write_bytes(swap)
        code, out, _ = run(*words, "--dry-run")
        assert code == 0
        assert "old would be overwritten: swap 'precious'" in out.splitlines()
        facts = json.loads(run(*words, "--dry-run", "--json")[1])
        assert facts["destinations"][0]["overwrites"] == "swap 'precious'"
        code, out, err = run(*words, "--progress=plain")
        assert (code, err) == (0, "old is overwritten: swap 'precious'\n")
        Path("old").write_bytes(swap)
        first = json.loads(run(*words, "--progress=json")[2].splitlines()[0])
        assert first == {"event": "overwrites", "path": "old", "what": "swap 'precious'"}
    code, _, err = run("copy", "src", "new", "--progress=plain")
    assert (code, err) == (0, "")


def test_a_copy_that_goes_on_overwrites_what_it_wrote_itself(run: Run) -> None:
    header = struct.pack("=III16s16s", 1, 255, 0, bytes(range(16)), b"precious")
    Path("src").write_bytes((bytes(1024) + header).ljust(4086, b"\0") + b"SWAPSPACE2" + bytes(SIZE))
    for _ in range(2):
        code, _, err = run("copy", "src", "new", "--map", "map", "--progress=plain")
        assert (code, err) == (0, "")


def test_dry_run_changes_nothing(run: Run) -> None:
    Path("a").write_bytes(bytes(SIZE))
    code, out, _ = run("copy", "src", "a", "new", "--dry-run")
    assert code == 0
    assert "to a sectors 0+6144" in out
    assert "new" in out
    assert not Path("new").exists()
    assert Path("a").read_bytes() == bytes(SIZE)
    code, _, err = run("copy", "src", "a", "--dry-run", "--piece", "2M")
    assert code == 2
    assert "a piece is" in err
    facts = json.loads(run("copy", "src", "new", "--dry-run", "--json")[1])
    assert facts["to_create"] == [{"path": "new", "sectors": SIZE >> 9}]


BAD: list[tuple[str, list[str], int, str]] = [
    ("no destination", ["src"], 2, "1 to 8 destinations, not 0"),
    ("nine", ["src", *"abcdefghi"], 2, "1 to 8 destinations, not 9"),
    ("twice", ["src", "a", "a"], 2, "a is given twice"),
    ("twice by a link", ["src", "old", "link"], 2, "link is given twice as a destination (also as"),
    ("twice, new", ["src", "a", "./a"], 2, "is given twice"),
    ("onto itself", ["src", "src"], 2, "src sectors 0+6144 overlaps the source"),
    ("overlap", ["src", "src", "--to", "8", "--count", "9"], 2, "overlaps the source"),
    ("overlap by a link", ["src", "srclink", "--to", "8", "--count", "9"], 2, "overlaps"),
    ("overlap by a hard link", ["src", "hard", "--to", "8", "--count", "9"], 2, "overlaps"),
    ("past the end", ["src", "a", "--count", "6145"], 2, "src has 6144s (3 MiB)"),
    ("from past the end", ["src", "a", "--from", "3M"], 2, "src has 6144s (3 MiB)"),
    ("nothing", ["src", "a", "--count", "0"], 2, "0 sectors: there is nothing to write"),
    ("no name", ["src", ""], 2, "argument DST: it is empty: is a variable of the shell not set"),
    ("no name of a source", ["", "a"], 2, "argument SRC: it is empty"),
    ("no such folder", ["src", "a/"], 2, "a/ is the name of a folder, which is not there"),
    ("too small", ["src", "old"], 2, "old is too small"),
    ("too small at --to", ["src", "old", "--to", "9", "--count", "1"], 2, "smaller --to"),
    ("odd count", ["src", "a", "--count", "1000B"], 2, "1000B is 1000 bytes, which is not a whole"),
    ("odd from", ["src", "a", "--from", "1B"], 2, "not a whole number"),
    ("odd source", ["odd", "a"], 2, "odd is 1000 bytes long, which is not a whole number"),
    ("empty source", ["empty", "a"], 2, "empty has 0s"),
    ("no such serial", ["SERIAL=dmcopy-none", "a"], 2, "SERIAL=dmcopy-none"),
    ("not a size", ["src", "a", "--count", "many"], 2, "'many' is not a size"),
    ("negative", ["src", "a", "--count=-1"], 2, "'-1' is not a size"),
    ("no source", ["nix", "a"], 2, "nix: there is no such device or file"),
    ("a folder", ["src", "folder"], 2, "folder is a directory"),
    ("no folder", ["src", "no/a"], 2, "there is no folder"),
    ("below /dev", ["src", "/dev/dmcopy-no-such"], 2, "no file is made below /dev"),
    ("no pages", ["src", "a", "--pages", "0"], 2, "0 pages are less than one block"),
    ("few pages", ["src", "a", "--pages", "1", "--piece", "8K"], 2, "1 pages hold less than one"),
    ("all pages", ["src", "a", "--pages", "4611686018427387904"], 2, "of memory"),
    ("pages", ["src", "a", "--pages", "9" * 5000], 2, "is too large: numbers end at 9223372036854"),
    ("far", ["src", "a", "--to", "8192P"], 2, "'8192P' is too large: sizes end at 922337203685477"),
    ("too far", ["src", "a", "--to", "8191P", "--count", "2P"], 2, "src has 6144s"),
    ("just too far", ["src", "a", "--to", "18014398509481983"], 2, "beyond the end of any file"),
    ("tiny", ["tiny", "a"], 2, "tiny is 100 bytes long, which is not a whole number of 512-byte"),
    ("map interval", ["src", "a", "--map-interval", "1e300"], 2, "is not a number of seconds from"),
    ("standard output", ["src", "-"], 2, "-: a copy is to devices and files"),
    ("by part", ["src", "PARTUUID=dmcopy-1"], 2, "PARTUUID=dmcopy-1: no block device has this"),
    ("lower case", ["uuid=dmcopy-1", "a"], 2, "uuid=dmcopy-1: no block device has this name"),
    ("no value", ["src", "ID="], 2, "ID=: no block device has this name"),
    ("no depth", ["src", "a", "--depth", "0"], 2, "the depth is 1 to 1024"),
    ("long piece", ["src", "a", "--piece", "2M"], 2, "to 1 MiB in whole blocks, not 2 MiB"),
    ("throttle", ["src", "a", "--throttle", "0"], 2, "--throttle is a percentage from 1 to 100"),
    ("unknown option", ["src", "a", "--verfy"], 2, "did you mean '--verify'"),
    ("unknown back end", ["src", "a", "--io", "magic"], 2, "invalid choice: 'magic'"),
    ("map is the source", ["src", "a", "--map", "src"], 2, "src cannot be the map"),
    ("map without a name", ["src", "a", "--map", ""], 2, "argument --map: it is empty"),
    ("trust without a map", ["src", "a", "--trust-map"], 2, "give --map FILE, too"),
    ("map without folder", ["src", "a", "--map", "no/map"], 1, "no/map: cannot save the map"),
]


@pytest.mark.parametrize(
    ("words", "code", "says"), [row[1:] for row in BAD], ids=[r[0] for r in BAD]
)
def test_bad_input_is_one_sentence(run: Run, words: list[str], code: int, says: str) -> None:
    Path("old").write_bytes(b"old" * 512)
    Path("link").symlink_to("old")
    Path("srclink").symlink_to("src")
    os.link("src", "hard")
    Path("odd").write_bytes(bytes(1000))
    Path("empty").touch()
    Path("tiny").write_bytes(bytes(100))
    Path("folder").mkdir()
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    got, out, err = run("copy", *words)
    assert (got, out) == (code, "")
    assert says in err
    assert err.startswith("dmcopy")
    assert len(err.splitlines()) == 1, err
    after = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    assert after == before, "something was written, or a new file left behind"


def test_a_locked_destination_is_busy(run: Run) -> None:
    import fcntl

    Path("a").write_bytes(bytes(SIZE))
    with open("a", "rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        code, _, err = run("copy", "src", "new", "a")
    assert code == ExitCode.BUSY
    assert f"a is in use by a lock of process {os.getpid()}" in err
    assert not Path("new").exists(), "nothing was written to it"


def test_a_back_end_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMCOPY_IO", "threads")
    assert json.loads(run("copy", "src", "a", "b", "--json")[1])["backend"] == "threads"
    monkeypatch.setenv("DMCOPY_IO", "magic")
    code, _, err = run("copy", "src", "new")
    assert (code, Path("new").exists()) == (2, False)
    assert "no I/O back end 'magic'" in err


class TestMap:
    """A map notes what is done, and is refused where it belongs to another copy."""

    def test_a_finished_copy_has_nothing_left_to_do(self, run: Run) -> None:
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        assert "0x00000000  0x00300000  +" in Path("m").read_text()
        facts = json.loads(run("copy", "src", "a", "--map", "m", "--json")[1])
        assert (facts["ok"], facts["bytes_written"], facts["map"]) == (True, 0, "m")

    def test_what_the_map_lacks_is_copied(self, run: Run) -> None:
        assert run("copy", "src", "a", "b", "--map", "m")[0] == 0
        state = json.loads(Path("m.dests").read_text())
        state["destinations"][1]["written"] = [[0, 8], [16, 100]]
        Path("m.dests").write_text(json.dumps(state))
        with open("b", "r+b") as file:
            file.write(bytes(SIZE))
        facts = json.loads(run("copy", "src", "b", "a", "--map", "m", "--json")[1])
        assert facts["bytes_written"] == SIZE - 108 * 512
        source, dest = Path("src").read_bytes(), Path("b").read_bytes()
        assert dest[: 8 * 512] == bytes(8 * 512)
        assert dest[8 * 512 : 16 * 512] == source[8 * 512 : 16 * 512]
        assert dest[116 * 512 :] == source[116 * 512 :]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["other", "a", "b"], "is the map of a copy of src"),
            (["src", "a"], "also goes to b"),
            (["src", "a", "c"], "not to c as it is now"),
            (["src", "a", "b", "c"], "not to c as it is now"),
            (["src", "a", "b", "--count", "8"], "is the map of sectors 0+6144 of src"),
            (["src", "a", "b", "--from", "8"], "is the map of sectors 0+6144 of src"),
        ],
    )
    def test_the_map_of_another_copy(self, run: Run, words: list[str], says: str) -> None:
        Path("other").write_bytes(bytes(SIZE))
        assert run("copy", "src", "a", "b", "--map", "m")[0] == 0
        before = Path("m").read_text()
        code, _, err = run("copy", *words, "--map", "m")
        assert (code, len(err.splitlines())) == (2, 1)
        assert says in err
        assert (Path("m").read_text(), Path("c").exists()) == (before, False)

    def test_a_source_that_has_grown(self, run: Run) -> None:
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        os.truncate("src", SIZE + 512)
        code, _, err = run("copy", "src", "a", "--map", "m", "--count", "6144")
        assert code == 2
        assert "src when it had 6144 sectors" in err

    def test_a_destination_that_was_removed(self, run: Run) -> None:
        """The one that is made in its place is new, and has nothing, whatever its inode."""
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        os.unlink("a")
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        assert same("a")

    def test_a_destination_that_another_file_has_replaced(self, run: Run) -> None:
        """Its inode number may come back."""
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        os.unlink("a")
        Path("a").write_bytes(bytes(SIZE))
        code, _, err = run("copy", "src", "a", "--map", "m")
        assert code == 2
        assert "not to a as it is now (that was another file or device of this name)" in err
        assert Path("a").read_bytes() == bytes(SIZE)

    def test_a_destination_that_was_renamed(self, run: Run) -> None:
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        os.rename("a", "b")
        facts = json.loads(run("copy", "src", "b", "--map", "m", "--json")[1])
        assert (facts["ok"], facts["bytes_written"]) == (True, 0)

    def test_a_source_that_another_file_has_replaced(self, run: Run) -> None:
        """Else the destination would have parts of both."""
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        os.unlink("src")
        Path("src").write_bytes(bytes(SIZE))
        code, _, err = run("copy", "src", "a", "--map", "m")
        assert code == 2
        assert "a copy of src, which was another file or device of this name" in err

    def test_a_map_of_ddrescues(self, run: Run) -> None:
        Path("a").write_bytes(bytes(SIZE))
        Path("m").write_text("0x0 ? 1\n0x0 0x100000 +\n0x100000 0x200000 ?\n")
        code, _, err = run("copy", "src", "a", "--map", "m")
        assert code == 2
        assert "m has no m.dests beside it" in err
        assert "give --trust-map" in err
        assert Path("a").read_bytes() == bytes(SIZE)

    def test_a_map_that_is_damaged(self, run: Run) -> None:
        assert run("copy", "src", "a", "--map", "m")[0] == 0
        Path("m").write_text("nonsense")
        assert run("copy", "src", "a", "--map", "m")[0] == ExitCode.MISMATCH
        Path("m.dests").write_text("[]")
        assert run("copy", "src", "a", "--map", "m")[0] == ExitCode.MISMATCH


class TestHoles:
    """Runs of holes cost by their extents, and what is zero already is left alone."""

    SPAN = 1 << 40

    def test_a_tebibyte_of_hole_is_no_work(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        requests = list[Request]()
        perform = threads.perform

        def spy(request: Request) -> None:
            requests.append(request)
            perform(request)

        monkeypatch.setattr(threads, "perform", spy)
        with open("huge", "wb") as file:
            file.truncate(self.SPAN)
            file.seek(self.SPAN // 2)
            file.write(b"x" * 4096)
        assert run("copy", "huge", "new", "--sparse", "--verify", "--io", "threads")[0] == 0
        assert run("zero", "new", "--verify", "--io", "threads")[0] == 0
        assert len(requests) < 10
        with open("new", "rb") as new:
            new.seek(self.SPAN // 2)
            assert new.read(4096) == bytes(4096)
        assert (os.stat("new").st_size, os.stat("new").st_blocks) == (self.SPAN, 0)

    def test_what_a_file_holds_is_zeroed_and_the_rest_is_not_touched(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with open("huge", "wb") as file:
            file.truncate(8 << 20)
        with open("a", "wb") as file:
            file.truncate(8 << 20)
            file.seek(5 << 20)
            file.write(b"y" * 8192)
        zeroed = list[tuple[int, int]]()
        zero_out = BlockDevice.zero_out

        def spy(self: BlockDevice, sector: int, count: int) -> None:
            zeroed.append((sector, count))
            zero_out(self, sector, count)

        monkeypatch.setattr(BlockDevice, "zero_out", spy)
        assert run("copy", "huge", "a", "--sparse")[0] == 0
        assert zeroed == [(5 << 11, 16)]
        assert Path("a").read_bytes() == bytes(8 << 20)

    def test_a_destination_that_verification_finds_to_differ(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is a hole in the source is read wherever the destination has none."""
        Path("src").write_bytes(b"")
        os.truncate("src", SIZE)
        monkeypatch.setattr(BlockDevice, "zero_out", lambda *_: None)
        Path("a").write_bytes(b"z" * 4096)
        os.truncate("a", SIZE)
        code, out, _ = run("copy", "src", "a", "--sparse", "--verify")
        assert (code, "a: DIFFERS in 4 KiB" in out) == (ExitCode.MISMATCH, True)


def test_a_copy_that_has_nothing_to_do_says_so(run: Run) -> None:
    assert run("copy", "src", "a", "--map", "m")[0] == 0
    code, out, err = run("copy", "src", "a", "--map", "m", "--progress", "json")
    assert (code, out) == (0, "a: ok, 3 MiB written\nnothing to do: an earlier run wrote it all\n")
    last = json.loads(err.splitlines()[-1])
    assert (last["already"], last["seconds_left"]) == (SIZE >> 9, 0.0)


@pytest.mark.parametrize("rate", ["0", "many", "-1", "1Q"])
def test_a_limit_is_a_number_of_bytes(run: Run, rate: str) -> None:
    code, _, err = run("copy", "src", "a", f"--limit={rate}")
    assert code == ExitCode.USAGE
    assert "is not a number of bytes a second: 500K, 10M" in err
    assert not Path("a").exists()


def test_a_limit_makes_small_pieces(run: Run) -> None:
    Path("src").write_bytes(bytes(64 << 10))
    facts = json.loads(run("copy", "src", "a", "--limit", "256K/s", "--json")[1])
    assert (facts["ok"], facts["piece_sectors"]) == (True, 64)


@pytest.mark.parametrize("files", range(6, 11))
def test_a_limit_of_open_files_is_told_in_a_sentence(files: int, tmp_path: Path) -> None:
    """Whatever meets it first: the file, the back end, or the import of a module."""
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["prlimit", f"--nofile={files}", sys.executable, "-m", "dmcopy", "copy", "a", "b"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        assert "Traceback" not in done.stderr
        assert "pen files" in done.stderr or "files are open" in done.stderr
        assert not (tmp_path / "b").exists()
