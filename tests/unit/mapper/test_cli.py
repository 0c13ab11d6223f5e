"""`dmcopy dm` over a dmsetup that replays real ones."""

import io
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from dmcopy.mapper.ledger import Ledger

from .conftest import Fake
from .recorded import EMPTY, INFO, LIN, NO_DRIVER, NOBODY, ODD, failed, info, ioctl, ok


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.mapper.ledger.default_path", lambda: tmp_path / "ledger.jsonl")


def dm(*words: str) -> int:
    return main(["dm", *words])


def test_create_and_load_take_tables_from_everywhere(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answer({"words": []})
    (tmp_path / "table").write_text("0 8 zero # from a file\n")
    assert dm("create", "one", "--table", "0 8 zero", "-u", "U", "-r") == 0
    assert dm("create", "two", str(tmp_path / "table")) == 0
    assert dm("create", "three", "--notable") == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("0 8 zero\n8 8 zero\n"))
    assert dm("load", "one") == 0
    assert dm("reload", "one", "--table", str(tmp_path / "table")) == 0
    assert [call["stdin"] for call in fake.calls] == [
        *("0 8 zero\n", "0 8 zero\n", "", "0 8 zero\n8 8 zero\n", "0 8 zero\n")
    ]
    assert [call["words"][0] for call in fake.calls] == ["create"] * 3 + ["load"] * 2
    entries = Ledger(tmp_path / "ledger.jsonl").entries()
    assert [(entry.name, entry.keep, entry.abandoned) for entry in entries] == [
        *(("one", True, False), ("two", True, False), ("three", True, False))
    ]


def test_create_concise_is_all_or_nothing(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer(ok("create"), NOBODY)
    assert dm("create", "--concise", "a,,,rw,0 8 zero;b,U2,7,ro,0 8 zero,8 8 error") == 0
    assert fake.calls[1]["stdin"] == "0 8 zero\n8 8 error\n"
    assert fake.calls[1]["words"][1:] == ["--uuid", "U2", "--readonly", "--minor", "7", "--", "b"]
    assert dm("create", "name", "--concise", "a,,,rw,0 8 zero") == ExitCode.USAGE
    assert "leave the other options out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "$(id)", "'", '"', "new\nline", "-dash", "ü", "a;b|c&d"])
def test_a_dry_run_prints_what_a_shell_would_run_just_so(
    fake: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    assert dm("create", "--dry-run", "-u", "U", "--table", "0 8 zero", "--", name) == 0
    assert dm("remove", "--dry-run", "--", name) == 0
    script = capsys.readouterr().out
    assert fake.calls == []
    assert not (tmp_path / "ledger.jsonl").exists()
    fake.answer({"words": []})
    subprocess.run(["sh", "-e"], input=script, text=True, check=True, timeout=30)
    create, remove = fake.calls
    assert (create["words"][0], create["words"][-1]) == ("create", name)
    assert create["stdin"] == "0 8 zero\n"
    assert remove["words"][-2:] == ["--", name]


def test_verbs_reach_dmsetup(fake: Fake) -> None:
    fake.answer(ok("table", stdout="0 64 linear 7:0 0\n"), {"words": []})
    assert dm("suspend", "--noflush", "--nolockfs", "one", "two") == 0
    assert dm("resume", "one") == 0
    assert dm("clear", "one") == 0
    assert dm("rename", "one", "two") == 0
    assert dm("rename", "--setuuid", "one", "U") == 0
    assert dm("message", "one", "0", "mark", "two words") == 0
    assert dm("message", "--", "one", "0", "-x") == 0
    assert dm("remove", "--force", "--retry", "/dev/mapper/a\\x20b", "two") == 0
    assert dm("wipe_table", "one") == 0
    plain = [words.replace("--noudevsync ", "") for words in fake.words]
    assert plain == [
        "suspend --noflush --nolockfs -- one",
        "suspend --noflush --nolockfs -- two",
        "resume -- one",
        "clear -- one",
        "rename -- one two",
        "rename --setuuid -- one U",
        r"message -- one 0 mark 'two\ words'",
        "message -- one 0 -x",
        "remove --force -- 'a b'",
        "remove --force -- two",
        *("table -- one", "load -- one", "suspend -- one", "resume -- one"),
    ]
    assert fake.calls[-3]["stdin"] == "0 64 error\n"


def test_output_is_dmsetups(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def out(*words: str) -> str:
        assert dm(*words) == 0
        return capsys.readouterr().out

    fake.answer(
        info(LIN, EMPTY, ODD),
        ok("status", "--", "lin", stdout="0 16384 linear \n"),
        ok("status", stdout="0 8 snapshot Invalid\n"),
        ok("table", "--", "empty", stdout="\n"),
        ok("table", stdout="0 16384 linear 7:0 0\n"),
        ok("deps", stdout="1 dependencies\t: (7, 0)\n"),
        ok("targets", stdout="linear           v1.4.0\n"),
        ok("version", stdout="Library version:   1.02.185\nDriver version:    4.47.0\n"),
    )
    assert out("ls") == 'a b"c\t(254:1)\nempty\t(254:8)\nlin\t(254:0)\n'
    assert out("status", "lin") == "0 16384 linear\n"
    assert out("status", "lin", "x").splitlines() == [
        *("lin: 0 16384 linear", "x: 0 8 snapshot Invalid")
    ]
    assert out("status", "--target", "snapshot").count("snapshot Invalid") == 2
    assert out("table").splitlines() == [
        *('a b"c: 0 16384 linear 7:0 0', "empty:", "lin: 0 16384 linear 7:0 0")
    ]
    assert out("deps", "lin") == "1 dependencies\t: (7, 0)\n"
    assert out("targets") == "linear           v1.4.0\n"
    assert "Driver version:    4.47.0" in out("version")
    assert out("info", "-c").splitlines()[0].split() == [
        *("Name", "Maj", "Min", "Stat", "Open", "Targ", "Event", "UUID")
    ]
    assert "State:             SUSPENDED (READ-ONLY)" in out("info")
    assert out("events") == 'a b"c: 0\nempty: 3\nlin: 0\n'


def test_json_is_typed(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def out(*words: str) -> object:
        assert dm(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    fake.answer(
        info(LIN),
        ok("status", stdout="0 8 snapshot 16/128 16\n"),
        ok("table", stdout="0 8 snapshot 7:0 7:1 P 8\n"),
        ok("deps", stdout="2 dependencies\t: (7, 0) (7, 1)\n"),
    )
    assert out("status", "lin") == {
        "lin": [
            {
                "start": 0,
                "length": 8,
                "target": "snapshot",
                "values": {"state": "", "used": {"used": 16, "total": 128}, "metadata": 16},
                "text": "16/128 16",
                "trouble": "",
            }
        ]
    }
    (line,) = out("table")["lin"]  # type: ignore[index]
    assert line["values"]["cow"] == "7:1"
    assert line["known"] is True
    assert out("deps") == {"lin": ["7:0", "7:1"]}
    assert out("events") == {"lin": 0}
    below = [{"name": "", "number": number, "below": []} for number in ("7:0", "7:1")]
    assert out("tree") == [{"name": "lin", "number": "254:0", "below": below}]
    (first,) = out("ls")  # type: ignore[misc]
    assert (first["name"], first["number"], first["live"]) == ("lin", [254, 0], True)


def test_tree_is_drawn(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    top, low = LIN.replace("lin", "top"), LIN.replace("lin", "low").replace("254|0", "254|1")
    fake.answer(
        info(top, low),
        ok("deps", "-o", "devno", "--", "top", stdout="2 dependencies\t: (254, 1) (7, 1)\n"),
        ok("deps", stdout="1 dependencies\t: (7, 0)\n"),
    )
    assert dm("tree") == 0
    assert capsys.readouterr().out.splitlines() == [
        "top (254:0)",
        " ├─low (254:1)",
        " │  └─(7:0)",
        " └─(7:1)",
    ]


def test_explain_needs_no_dmsetup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert dm("explain", "0 131072 snapshot /dev/a /dev/b P 8") == 0
    assert capsys.readouterr().out == (
        "sectors 0 to 131071 (64 MiB): snapshot: is a snapshot of /dev/a: what changes goes to "
        "/dev/b in chunks of 8 sectors, and the list of chunks is kept on disk\n"
    )
    assert dm("explain", "0 131072 snapshot /dev/a /dev/b P 3") == ExitCode.USAGE
    assert "snapshot: chunk_size '3' must be a power of two" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("0 8 tomorrow x\n"))
    assert dm("explain", "-", "--json") == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert (line["target"], line["known"]) == ("tomorrow", False)


def test_errors_are_one_sentence(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*words: str) -> tuple[int, str]:
        code = dm(*words)
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return code, text

    fake.answer({"words": [], "stderr": NO_DRIVER, "code": 1})
    code, text = error("ls")
    assert (code, "dmcopy doctor" in text) == (ExitCode.MISSING, True)
    fake.answer(failed("remove", stderr=ioctl("remove", "one", "Device or resource busy")))
    code, text = error("remove", "--timeout", "0.1", "one")
    assert (code, "one is in use by" in text) == (ExitCode.BUSY, True)
    code, text = error("create", "a/b", "--table", "0 8 zero")
    assert (code, "slash" in text) == (ExitCode.USAGE, True)
    code, text = error("create", "one", "--table", "0 8 zero\n16 8 zero")
    assert (code, "leaves a gap" in text) == (ExitCode.USAGE, True)
    code, text = error("create", "one", "/nonexistent")
    assert (code, "No such file" in text) == (ExitCode.FAILED, True)
    code, text = error("explain", "/nonexistent")
    assert (code, "No such file" in text) == (ExitCode.FAILED, True)
    code, text = error("create", "one", "--table", "")
    assert (code, "no lines" in text) == (ExitCode.USAGE, True)
    code, text = error("remove_all")
    assert (code, "reap" in text) == (ExitCode.USAGE, True)


def test_run_removes_the_device_and_gives_the_commands_exit_code(
    fake: Fake, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.answer(info(LIN), {"words": []})
    command = ["sh", "-c", "echo $DMCOPY_DEVICE; exit 7"]
    assert dm("run", "work", "--table", "0 8 zero", "--", *command) == 7
    assert capfd.readouterr().out == "/dev/mapper/work\n"
    assert [call["words"][0] for call in fake.calls] == ["create", "remove"]
    assert dm("run", "work", "--table", "0 8 zero") == ExitCode.USAGE


def test_wait_and_stats(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer(
        info("lin||254|0|0|1|5|Live|Active|Writeable"),
        ok("message", "--", "lin", "0", "@stats_create", stdout="3\n"),
        ok("message", "--", "lin", "0", "@stats_list", stdout="3: 0+16 16 dmcopy -\n"),
        ok("message", "--", "lin", "0", "@stats_print", stdout="0+16" + " 1" * 13 + "\n"),
        {"words": []},
    )
    assert dm("wait", "lin", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"device": "lin", "event": 5}
    assert dm("stats", "create", "lin", "--bounds", "1,10") == 0
    assert dm("stats", "print", "lin") == 0
    assert dm("stats", "delete", "lin") == 0
    out = capsys.readouterr().out
    assert out == "3\n3: 0+16: 1 reads, 1 sectors; 1 writes, 1 sectors\n"
    assert "message -- lin 0 @stats_delete 3" in fake.words
    assert shlex.split(fake.words[2])[-2:] == ["histogram:1,10", "dmcopy"]


def test_reap_removes_what_has_no_owner_and_says_what_is_left(
    fake: Fake, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    text = "\n".join(
        json.dumps({"op": "made", **entry})
        for entry in (
            _entry("1", "low", "DMCOPY-low"),
            _entry("2", "top", "DMCOPY-top"),
            _entry("3", "other", "DMCOPY-gone"),
        )
    )
    ledger.path.write_text(text + "\n")
    ledger.add("dm", "mine", uuid="DMCOPY-mine")
    rows = (
        "top|DMCOPY-top|254|0|0|1|0|Live|Suspended|Writeable",
        "low|DMCOPY-low|254|1|0|1|0|Live|Active|Writeable",
        "other|theirs|254|2|0|1|0|Live|Active|Writeable",
        "mine|DMCOPY-mine|254|3|0|1|0|Live|Active|Writeable",
    )
    fake.answer(
        ok("deps", "-o", "devno", "--", "top", stdout="1 dependencies\t: (254, 1)\n"),
        ok("deps", stdout="0 dependencies\t:\n"),
        {**info(rows[1]), "words": [*INFO, "--", "low"]},
        info(*rows),
        {"words": []},
    )
    assert dm("reap", "--dry-run") == 0
    plan = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert plan.index("top") < plan.index("low")
    assert sorted(plan) == ["low", "other", "top"]
    assert dm("reap") == 0
    assert capsys.readouterr().out == "removed dm top\nremoved dm low\n"
    changed = [words for words in fake.words if words.split()[0] in ("resume", "remove")]
    assert [words.split()[-1] for words in changed] == ["top", "top", "low"]
    assert [entry.name for entry in ledger.entries()] == ["mine"]


def _entry(number: str, name: str, uuid: str) -> dict[str, object]:
    from dmcopy.mapper.ledger import boot_id

    head = {"id": number, "kind": "dm", "name": name, "uuid": uuid}
    return {**head, "owner": "999999999 1", "boot": boot_id(), "keep": False, "made": 0}


def test_other_verbs_are_dmsetups_own(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer(ok("splitname", stdout="VG LV LVLayer\n"), {"words": []})
    assert dm("splitname", "vg-lv", "LVM") == 0
    assert dm("mknodes") == 0
    assert dm("create", "one", "--noudevsync", "--notable", "-u", "U") == 0
    assert capsys.readouterr().out == "VG LV LVLayer\n"
    assert fake.words == [
        *("splitname vg-lv LVM", "mknodes"),
        "create --noudevsync --uuid U --notable -- one",
    ]
