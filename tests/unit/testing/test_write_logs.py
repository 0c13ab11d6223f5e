"""Logs of writes in files: which entries are meant, what a replay writes, and what it refuses."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dmcopy.block import BlockDevice
from dmcopy.cli.main import main
from dmcopy.errors import ExitCode, MetadataError, UsageError
from dmcopy.export.write_log import WriteLog
from dmcopy.ondisk.write_log import LogFlag
from dmcopy.testing.fsck import Fsck
from dmcopy.testing.logfile import LogFile, Logged, Selection, is_end
from dmcopy.testing.recording import Recording, moments
from dmcopy.testing.replay import Replay, ReplayRange

SECTORS = 64
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `dmcopy write-log …` in a folder with a log and an empty disk."""
    monkeypatch.chdir(tmp_path)
    make_log("log")
    Path("disk").write_bytes(bytes(SECTORS << 9))

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(("write-log", *words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


def make_log(path: str, block_size: int = 512) -> None:
    """0 write, 1 write, 2 flush, 3 mark one, 4 FUA, 5 discard, 6 flush, 7 mark two, 8 end."""
    log = WriteLog(path, block_size)
    log.write(0, b"a" * 2 * block_size)
    log.write(1, b"b" * block_size)
    log.flush()
    log.mark("one")
    log.write(4, b"c" * block_size, fua=True)
    log.discard(0, 1)
    log.flush()
    log.mark("two")
    log.close()


def letters(path: str = "disk") -> str:
    return Path(path).read_bytes()[::512].decode().replace("\0", ".")[:6]


@pytest.mark.parametrize(
    ("options", "last", "content"),
    [
        ((), 8, ".b..c."),
        (("--limit", "1"), 0, "aa...."),
        (("--next-flush",), 2, "ab...."),
        (("--next-fua",), 4, "ab..c."),
        (("--next-fua", "--next-flush"), 2, "ab...."),
        (("--end-mark", "two"), 7, ".b..c."),
        (("--end-mark", "one"), 3, "ab...."),
        (("--start-entry", "3", "--next-flush"), 6, "....c."),
        (("--start-mark", "one", "--limit", "1"), 4, "....c."),
        (("--start-mark", "one", "--limit", "9"), 8, "....c."),
        (("--no-discard",), 8, "ab..c."),
        (("--start-sector", "4"), 8, "....c."),
        (("--end-sector", "0"), 8, ".a...."),
        (("--end-sector", "1"), 8, ".b...."),
        (("--start-sector", "2", "--end-sector", "3"), 8, "......"),
        (("--start-sector", "2", "--end-sector", "4"), 8, "....c."),
    ],
)
def test_replay(run: Run, options: tuple[str, ...], last: int, content: str) -> None:
    code, out, err = run("replay", "log", "disk", "--dry-run", *options)
    assert (code, err, letters()) == (0, "", "......")
    assert out.startswith("would write ")
    code, out, _ = run("replay", "log", "disk", "--json", *options)
    assert (code, letters()) == (0, content)
    assert json.loads(out)["last"] == last
    sector = ("--no-discard", "--start-sector", "--end-sector")
    if not any(word in options for word in sector):
        code, out, _ = run("dump", "log", "--find", "--json", *options)
        assert [one["number"] for one in json.loads(out)["entries"]] == [last]


def test_what_is_not_there_is_an_error_before_anything_is_written(run: Run) -> None:
    for options, words in (
        (("--end-mark", "three"), "log has no mark 'three' from entry 0 on"),
        (("--start-mark", "three"), "log has no mark 'three'"),
        (("--start-entry", "5", "--next-fua"), "no FUA write from entry 5 on"),
        (("--start-mark", "two", "--next-flush"), "no flush behind mark 'two'"),
        (("--start-entry", "10"), "log has 9 entries: none is 10"),
        (("--start-entry", "1", "--start-mark", "one"), "both say where to begin"),
        (("--start-entry", "-1"), "log has 9 entries: none is -1"),
        (("--start-sector", "4", "--end-sector", "3"), "there are no sectors from 4 up to 3"),
        (("--start-sector", "-1"), "there are no sectors from -1 up to the end"),
        (("--limit", "0"), "0 is too small: give a number from 1 on"),
    ):
        code, _, err = run("replay", "log", "disk", *options)
        assert code == ExitCode.USAGE
        assert words in err
        assert letters() == "......"


def test_a_disk_that_is_too_small_or_the_log_itself(run: Run) -> None:
    Path("small").write_bytes(bytes(4 << 9))
    code, _, err = run("replay", "log", "small")
    assert code == ExitCode.USAGE
    assert "small has 4s (2 KiB), but entry 4 of log wrote 1 sectors from 4" in err
    assert letters("small") == "...."
    assert run("check", "log", "small")[0] == ExitCode.USAGE
    assert run("replay", "log", "small", "--next-flush")[0] == ExitCode.OK
    code, _, err = run("replay", "log", "./log")
    assert (code, "is the log itself" in err) == (ExitCode.USAGE, True)
    assert run("replay", "log", "nowhere")[0] == ExitCode.USAGE
    assert not Path("nowhere").exists()


def test_a_disk_that_another_process_has_is_left_alone(run: Run) -> None:
    with BlockDevice.open("disk", write=True):
        assert run("replay", "log", "disk")[0] == ExitCode.BUSY
    assert letters() == "......"


def test_info_and_dump(run: Run) -> None:
    facts = json.loads(run("info", "log", "--json")[1])
    assert facts == {
        "block_size": 512,
        "nr_entries": 9,
        "writes": 3,
        "flushes": 2,
        "fua": 1,
        "discards": 1,
        "marks": 3,
        "sectors_written": 4,
        "least_sectors": 5,
        "ended": True,
    }
    out = run("info", "log")[1]
    assert "writes:      3 of 4s (2 KiB), 1 of them FUA" in out
    assert "marks:       3, the end among them" in out
    lines = run("dump", "log", "--start-entry", "3", "--limit", "3")[1].splitlines()
    assert [line.split() for line in lines] == [
        ["ENTRY", "KIND", "SECTOR", "COUNT", "TEXT"],
        ["3", "mark", "one"],
        ["4", "write", "fua", "4", "1"],
        ["5", "discard", "0", "1"],
    ]


def test_a_block_of_4096_bytes_is_eight_sectors(run: Run) -> None:
    make_log("large", 4096)
    assert json.loads(run("info", "large", "--json")[1])["least_sectors"] == 40
    assert run("replay", "large", "disk", "--next-flush")[0] == 0
    assert Path("disk").read_bytes()[:8192] == b"a" * 4096 + b"b" * 4096


@pytest.mark.parametrize("size", [0, 20, 600, 1500, 1600, 3000])
def test_a_log_that_is_cut_or_none_is_one_sentence_and_4(run: Run, size: int) -> None:
    data = Path("log").read_bytes()
    Path("log").write_bytes(data[:size])
    for words in (("info", "log"), ("dump", "log"), ("check", "log"), ("replay", "log", "disk")):
        code, out, err = run(*words)
        assert (code, out) == (ExitCode.MISMATCH, "")
        assert err.startswith("dmcopy: log: byte ")
        assert err.count("\n") == 1
    assert letters() == "......"
    Path("log").write_bytes(random.Random(1).randbytes(4096))
    assert run("check", "log")[0] == ExitCode.MISMATCH


def test_what_the_header_does_not_count_is_not_there(run: Run) -> None:
    """As in the log of a kernel that was cut off: what it wrote last is behind the number."""
    data = bytearray(Path("log").read_bytes())
    data[16] = 4
    Path("log").write_bytes(data)
    assert run("replay", "log", "disk") == (0, "wrote 3s (1.5 KiB) to disk: 4 entries, the last is "
                                            "entry 3\n", "")  # fmt: skip
    assert letters() == "ab...."


def test_check_of_the_log_alone(run: Run) -> None:
    assert run("check", "log") == (0, "", "log: sound, 9 entries\n")
    assert json.loads(run("check", "--json", "log", "disk")[1])["sound"]
    assert letters() == "......"
    assert run("check", "log", "--fsck", "true")[0] == ExitCode.USAGE
    assert run("check", "log", "--at", "3")[0] == ExitCode.USAGE


@pytest.mark.parametrize(
    ("at", "checks"), [("flush", 2), ("fua", 1), ("mark", 3), ("discard", 1), ("1", 9), ("4", 2)]
)
def test_the_points_at_which_a_disk_is_checked(run: Run, at: str, checks: int) -> None:
    words = ("check", "log", "disk", "--fsck", "true", "--at", at, "--json")
    assert json.loads(run(*words, "--dry-run")[1])["checks"] == checks
    code, out, _ = run(*words)
    assert (code, json.loads(out)) == (0, {"disk": "disk", "checks": checks, "failed": None})
    assert letters() == ".b..c."


def test_the_first_state_that_fails_is_left_on_the_disk(run: Run) -> None:
    Path("good").write_bytes(bytes(5 << 9))
    code, out, err = run("check", "log", "disk", "--at", "1", "--fsck", "cmp -n 512 {} good")
    assert code == ExitCode.MISMATCH
    assert (out, "differ" in err) == ("", True)
    assert "disk: behind entry 0 (write) the command ended with 1" in err
    assert "replay --limit 1'" in err
    assert letters() == "aa...."
    code, out, _ = run("check", "log", "disk", "--check", "fua", "--fsck", "grep -q c disk")
    assert (code, out) == (0, "disk: sound at all of 1 points\n")
    code, out, _ = run("check", "log", "disk", "--json", "--fsck", "false")
    failed = json.loads(out)["failed"]
    assert (failed["entry"], failed["code"], letters()) == (2, 1, "ab..c.")


def test_a_command_may_change_its_copy(run: Run) -> None:
    words = ("check", "log", "disk", "--at", "flush", "--fsck", "truncate -s 0 {}")
    assert run(*words)[0] == 0
    assert letters() == ".b..c."
    for command, code in (("no-such-fsck {}", ExitCode.MISSING), ("'", 2), ("", 2)):
        assert run("check", "log", "disk", "--fsck", command)[0] == code
    late = ("check", "log", "disk", "--fsck", "sleep 60", "--fsck-timeout", "0.01")
    assert run(*late)[0] == ExitCode.FAILED


def test_a_power_cut_undoes_only_what_was_not_flushed(tmp_path: Path) -> None:
    """Against a model: of each sector the versions since the last flush, or since a FUA write."""
    disk = tmp_path / "disk"
    outcomes = 0
    for seed in range(30):
        rng, path = random.Random(seed), str(tmp_path / f"log{seed}")
        first = b"".join(bytes([rng.choice((0, 255))]) * 512 for _ in range(16))
        disk.write_bytes(first)
        log = WriteLog(path, 512)
        for _ in range(20):
            sector = rng.randrange(13)
            kind = rng.choice(("write", "write", "fua", "discard", "flush"))
            if kind == "flush":
                log.flush()
            elif kind == "discard":
                log.discard(sector, 3)
            else:
                data = b"".join(bytes([rng.randrange(256)]) * 512 for _ in range(rng.randint(1, 3)))
                log.write(sector, data, fua=kind == "fua")
        log.close()
        with LogFile(path) as found:
            may_be = [[first[at : at + 512]] for at in range(0, len(first), 512)]
            played, flushed = 0, False
            before: Mapping[int, int] = {}
            replay = Replay(found, str(disk), found.entries())
            for state in replay.states(lambda _: True, range(4)):
                for logged in replay.entries[played : state.logged.number + 1]:
                    if flushed:
                        may_be = [versions[-1:] for versions in may_be]
                    flushed = bool(logged.entry.flags & LogFlag.FLUSH)
                    data = found.data(logged)
                    for at in range(logged.entry.nr_sectors):
                        versions = may_be[logged.entry.sector + at]
                        if logged.entry.flags & LogFlag.FUA:
                            versions.clear()
                        versions.append(data[at << 9 : at + 1 << 9])
                played = state.logged.number + 1
                content = disk.read_bytes()
                for at, versions in enumerate(may_be):
                    held = content[at << 9 : at + 1 << 9]
                    assert held in versions
                    assert state.kept or held == versions[-1], "nothing was undone"
                    if state.kept and not before:
                        assert held == versions[0], "first all of it is undone"
                before = state.kept
                outcomes += bool(before)
    assert outcomes > 1000


def test_a_flush_that_is_forgotten_is_found_by_seeds(run: Run) -> None:
    """The data is written before what names it, so that no prefix shows that it is not flushed."""
    look = "sh -c 'test $(head -c 1 $0) != 2 || test $(tail -c +1025 $0 | head -c 1) = 2' {}"
    for flush in (True, False):
        Path("log").unlink()
        log = WriteLog("log", 512)
        for number in (b"1", b"2"):
            log.write(2, number * 1024)
            if flush:
                log.flush()
            log.write(0, number * 512)
            log.flush()
        log.close()
        Path("disk").write_bytes(b"0" * (SECTORS << 9))
        words = ("check", "log", "disk", "--at", "flush", "--fsck", look)
        assert run(*words, "--seeds", "0-5", "--dry-run", "--json")[0] == 0
        assert run(*words)[0] == 0
        Path("disk").write_bytes(b"0" * (SECTORS << 9))
        code, out, err = run(*words, "--seeds", "0-5", "--json")
        if flush:
            assert (code, err) == (0, "")
            assert json.loads(out)["checks"] > 8
            assert letters()[:4] == "2.22".replace(".", "0")
    failed = json.loads(out)["failed"]
    assert (code, failed["entry"], failed["kind"]) == (4, 5, "flush")
    (undone,) = failed["undone"]
    assert (undone["entry"], 0 in undone["kept"]) == (3, False)
    assert letters()[0] + letters()[2] == "21"
    assert failed["seed"] is None, "each write is lost alone"
    Path("disk").write_bytes(b"0" * (SECTORS << 9))
    code, out, err = run(*words, "--seeds", "0")
    assert (code, out) == (4, "")
    assert "after a power cut at entry 5 (flush), without entry 3, the command ended with 1" in err
    assert "--seeds" not in err
    assert run("check", "log", "--seeds", "1")[0] == ExitCode.USAGE
    assert run(*words, "--seeds", "x")[0] == ExitCode.USAGE


def test_a_torn_write_is_found_again_by_its_seed(run: Run) -> None:
    look = "sh -c 'test $(head -c 1 $0) = $(tail -c +513 $0 | head -c 1)' {}"
    words = ("check", "log", "disk", "--at", "2", "--limit", "2", "--fsck", look)
    Path("disk").write_bytes(b"0" * (SECTORS << 9))
    Path("log").unlink()
    log = WriteLog("log", 512)
    log.write(0, b"1" * 1024)
    log.flush()
    log.close()
    code, out, _ = run(*words, "--seeds", "0-19", "--json")
    failed = json.loads(out)["failed"]
    assert (code, failed["undone"][0]["entry"]) == (4, 0)
    torn = Path("disk").read_bytes()
    Path("disk").write_bytes(b"0" * (SECTORS << 9))
    code, _, err = run(*words, "--seeds", str(failed["seed"]))
    assert f"of entry 0 only sectors {failed['undone'][0]['kept']}, the command ended" in err
    assert f"'--seeds {failed['seed']}' tries this one again" in err
    assert (code, Path("disk").read_bytes()) == (4, torn)


def test_a_write_that_flushes_is_behind_its_flush(tmp_path: Path) -> None:
    """As a write with REQ_PREFLUSH: what it writes itself is not durable."""
    path, disk = str(tmp_path / "log"), tmp_path / "disk"
    log = WriteLog(path, 512)
    log.write(0, b"a" * 512)
    log.write(1, b"b" * 512)
    log.close()
    data = bytearray(Path(path).read_bytes())
    at = data.index(b"b" * 512) - 512 + 16
    data[at : at + 8] = LogFlag.FLUSH.to_bytes(8, "little")
    Path(path).write_bytes(data)
    disk.write_bytes(bytes(4 << 9))
    with LogFile(path) as found:
        replay = Replay(found, str(disk), found.entries())
        lost = [disk.read_bytes()[::512] for state in replay.states(_is_flush, ()) if state.kept]
        recording = Recording.of_log(found, bytes(4 << 9))
    assert lost == [b"a\0\0\0"]
    (*_, moment) = moments(recording)
    assert [write.sector for write in moment.pending().values()] == [1]


def _is_flush(logged: Logged) -> bool:
    return bool(logged.entry.flags & LogFlag.FLUSH)


def test_from_python(tmp_path: Path) -> None:
    path, disk = str(tmp_path / "log"), tmp_path / "disk"
    make_log(path)
    disk.write_bytes(bytes(8 << 9))
    with LogFile(path) as log:
        entries = Selection(next_flush=True).of(log)
        assert [logged.number for logged in entries] == [0, 1, 2]
        assert log.data(entries[1]) == b"b" * 512
        assert log.data(list(log.entries())[5]) == bytes(512)
        replay = Replay(log, str(disk), log.entries(), ReplayRange(end=3))
        assert replay.sectors == 4
        for logged in replay.run(lambda one: is_end(one.entry)):
            assert disk.read_bytes()[512] == ord("b")
            assert Fsck(f"test -s {disk}").judge(str(disk)).code == 0
            assert logged.number == 8
    with pytest.raises(MetadataError):
        LogFile(str(disk))
    with pytest.raises(UsageError):
        LogFile(str(tmp_path))
