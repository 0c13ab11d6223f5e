"""`dmcopy dm` over a dmsetup that replays real ones."""

import io
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.errors import ExitCode
from dmcopy.ledger import Ledger

from .conftest import Fake
from .recorded import EMPTY, INFO, LIN, NO_DRIVER, NOBODY, ODD, failed, info, ioctl, ok


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: tmp_path / "ledger.jsonl")


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
    assert dm("message", "one", "0", "create_thin  7", "8") == 0
    assert dm("message", "one", "0", "mark", r"two\ words") == 0
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
        "message -- one 0 create_thin 7 8",
        r"message -- one 0 mark 'two\ words'",
        "message -- one 0 -x",
        "remove --force -- 'a b'",
        "remove --force -- two",
        *("table -- one", "load -- one", "suspend -- one", "resume -- one"),
    ]
    assert fake.calls[-3]["stdin"] == "0 64 error\n"


def test_what_is_printed_is_dmsetups_own_words(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    def out(*words: str) -> str:
        assert dm(*words) == 0
        return capsys.readouterr().out

    fake.answer(
        ok("ls", "--manglename", "hex", "--", stdout="a b\t(254:1)\nlin\t(254:0)\n"),
        ok("status", stdout="0 8 snapshot \x1b[2J\n"),
        {"words": []},
    )
    assert out("ls") == "a b\t(254:1)\nlin\t(254:0)\n"
    assert out("status", "lin") == "0 8 snapshot \\x1b[2J\n"
    for words in (
        "info -c --noheadings -o name",
        "info -C -O -events -o +devno --separator , --rows --nameprefixes --unquoted",
        "info --columns -S name=~^a",
        "info -c -u U-1",
        "info -v -j 254 -m 3",
        "status --target snapshot --noflush",
        "table --inactive --showkeys --concise a",
        "deps -o devname /dev/mapper/a\\x20b other",
        "ls --tree -o ascii,uuid",
        "ls --target linear",
        "targets",
    ):
        out(*words.split())
    assert [words.replace(" --manglename hex", "") for words in fake.words[2:]] == [
        "info -c --noheadings -o name --",
        "info -C -O -events -o +devno --separator , --rows --nameprefixes --unquoted --",
        "info --columns --select 'name=~^a' --",
        "info -c --uuid U-1 --",
        "info -v --major 254 --minor 3 --",
        "status --target snapshot --noflush --",
        "table --inactive --showkeys --concise -- a",
        "deps -o devname -- 'a b' other",
        "ls --tree -o ascii,uuid --",
        "ls --target linear --",
        "targets --",
    ]


def test_devices_are_named_by_uuid_number_or_selection(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    select = ["info", "-c", "--manglename", "hex", "--noheadings", "-o", "mangled_name", "-S"]
    fake.answer(
        ok(*select, "open=0", stdout="a\\x20b\nlin\n"),
        ok(*select, "open=9"),
        info(LIN, EMPTY, ODD),
        {"words": []},
    )
    assert dm("remove", "-S", "open=0") == 0
    assert dm("remove", "-S", "open=9") == 0
    assert dm("suspend", "-u", "U5") == 0
    assert dm("resume", "--major", "254", "-m", "0") == 0
    assert dm("rename", "-u", "U5", "new") == 0
    assert dm("load", "-u", "U5", "--table", "0 8 zero") == 0
    assert dm("message", "-j", "254", "-m", "8", "0", "hello", "you") == 0
    changes = [words for words in fake.words if not words.startswith("info")]
    assert changes == [
        *("remove -- 'a b'", "remove -- lin", "suspend -- empty", "resume -- lin"),
        *("rename -- empty new", "load -- empty", "message -- empty 0 hello you"),
    ]
    assert dm("ls", "--json") == 0
    assert dm("info", "--json", "-u", "U5") == 0
    assert capsys.readouterr().out.count('"name": "empty"') == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("remove", "say which device: by name"),
        ("remove lin -S open=0", "name the devices in one way"),
        ("remove -S ", "an empty selection means every device"),
        ("suspend -j 254", "both the major number"),
        ("suspend -u U5 -j 254 -m 8", "not by both"),
        ("suspend -u nobody", "no mapped device of UUID nobody"),
        ("suspend -j 1 -m 2", "no mapped device numbered 1:2"),
        ("ls --exec true", "loop over 'dmcopy dm ls --json'"),
        ("ls -S name=a", "'dmcopy dm info -c -S'"),
        ("info --count 3", "use watch"),
        ("info -c --interval 3", "use watch"),
        ("info -S name=a", "only with -c"),
        ("info -c -o name --json", "-o is for dmsetup's text"),
        ("create a --udevcookie 5", "a cookie of its own"),
        ("create a --readahead 8", "blockdev --setra"),
        ("create a -U 0", "chown"),
        ("create a -j 254 --table x", "only one major number"),
        ("resume a --addnodeonresume", "is there in any case"),
        ("remove a --checks", "checked in any case"),
        ("create a --engine user", "is for 'dmcopy dm run'"),
        ("wipe_table a -f", "wipe_table --noflush --nolockfs"),
        ("remove a -y", "nothing is asked"),
        ("suspend a -v", "'dmcopy dm info NAME'"),
        ("table --manglename none", "is always what it is"),
        ("rename lin", "say the new name"),
        (
            "statuss lin",
            "invalid choice: 'statuss' (did you mean 'status'?); see 'dmcopy dm --help'",
        ),
        ("info --noheading", "(did you mean '--noheadings'?); see 'dmcopy dm info --help'"),
        ("create x --tabel y", "dmcopy dm create: unrecognized arguments: --tabel y (did you mean"),
        ("remove x --forc", "did you mean '--force'?"),
        ("with", "required: NAME"),
        ("explain", "required: TABLE"),
        ("explain ", "the table has no lines"),
        ("create", "say what to call the device"),
        ("create x --minor y", "'y' is not a whole number"),
        ("create x --timeout -1", "is not a number of seconds"),
        ("stats prnt lin", "did you mean 'print'?"),
        ("tree lin", "unrecognized arguments: lin"),
        ("message lin x mark", "'x' is not a sector"),
        ("message lin 0", "say what to send"),
        ("wait lin soon", "'soon' is not the number of an event"),
        ("remove_all", "did not make"),
        ("udevcomplete_all", "let others go on"),
        ("splitname a --json", "leave --json out"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    fake: Fake, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    fake.answer(info(LIN, EMPTY, ODD))
    try:
        code = dm(*words.split(" "))
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (ExitCode.USAGE, 1)
    assert message in error
    assert all(call["words"][0] == "info" for call in fake.calls)


def test_dmsetups_own_complaints_are_one_sentence(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = "Mapped Device Name Fields\n-----\n  name - Name.\n \nUnrecognised field: nosuch\n"
    missing = failed(
        "info", "--manglename", stderr="Device does not exist.\n", stdout="Name: lin\n"
    )
    fake.answer(failed("info", "--manglename", "hex", "-c", stderr=fields), missing, info(LIN))
    assert dm("info", "-c", "-o", "nosuch") == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "dmcopy: dmsetup says: Unrecognised field: nosuch "
        "('dmcopy dm info -c -o help' lists the fields)\n"
    )
    assert dm("info", "lin", "nobody") == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert out == "Name: lin\n"
    assert err.startswith(
        "dmcopy: nobody: cannot look at it: No such device or address; there is no"
    )
    assert err.count("\n") == 1


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
    assert dm("explain", "0 8 lineer /dev/a 0\n8 64 mirror dsk 2 l 8 2 a 0 b 0") == 0
    out = capsys.readouterr().out
    assert "does not know (did you mean 'linear'?): passed on as it is" in out
    assert "log 'dsk', which dmcopy does not know (did you mean 'disk'?)" in out
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


def test_with_removes_the_device_and_gives_the_commands_exit_code(
    fake: Fake, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.answer(info(LIN), {"words": []})
    command = ["sh", "-c", "echo $DMCOPY_DEVICE; exit 7"]
    assert dm("with", "work", "--table", "0 8 zero", "--", *command) == 7
    assert capfd.readouterr().out == "/dev/mapper/work\n"
    assert [call["words"][0] for call in fake.calls] == ["create", "remove"]
    assert dm("with", "work", "--table", "0 8 zero") == ExitCode.USAGE


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
    assert dm("wait", "lin") == 0
    assert "after number 5; dmsetup would return at once" in capsys.readouterr().err
    assert [words for words in fake.words if words.startswith("wait")] == [
        *("wait -- lin 4", "wait -- lin 5")
    ]
    assert dm("stats", "create", "lin", "--bounds", "1,10") == 0
    assert dm("stats", "print", "lin") == 0
    assert dm("stats", "delete", "lin") == 0
    out = capsys.readouterr().out
    assert out == "3\n3: 0+16: 1 reads, 1 sectors; 1 writes, 1 sectors\n"
    assert "message -- lin 0 @stats_delete 3" in fake.words
    assert shlex.split(fake.words[5])[-2:] == ["histogram:1,10", "dmcopy"]


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
    from dmcopy.ledger import boot_id

    head = {"id": number, "kind": "dm", "name": name, "uuid": uuid}
    return {**head, "owner": "999999999 1", "boot": boot_id(), "keep": False, "made": 0}


def test_other_verbs_are_dmsetups_own(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer(ok("splitname", stdout="VG LV LVLayer\n"), {"words": []})
    assert dm("splitname", "vg-lv", "LVM") == 0
    assert dm("mknodes") == 0
    assert dm("mangle", "--dry-run", "a b") == 0
    assert dm("create", "one", "--noudevsync", "--notable", "-u", "U") == 0
    assert capsys.readouterr().out == "VG LV LVLayer\ndmsetup mangle 'a b'\n"
    assert dm("help") == 0
    assert "dmcopy dm explain" in capsys.readouterr().out
    assert fake.words == [
        *("splitname vg-lv LVM", "mknodes"),
        "create --noudevsync --uuid U --notable -- one",
    ]
