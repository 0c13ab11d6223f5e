"""`dmcopy dm` over a dmsetup that replays real ones."""

import io
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

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


def test_create_concise_is_all_or_nothing(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answer(ok("create"), NOBODY)
    spec = "a,,,rw,0 8 zero;b,U2,7,ro,0 8 zero,8 8 error"
    assert dm("create", "--concise", spec) == 0
    assert fake.calls[1]["stdin"] == "0 8 zero\n8 8 error\n"
    assert fake.calls[1]["words"][1:] == ["--uuid", "U2", "--readonly", "--minor", "7", "--", "b"]
    for words in (["--concise", "-"], ["--concise"], ["--noudevsync", "--concise", "-r"]):
        monkeypatch.setattr("sys.stdin", io.StringIO(spec))
        assert dm("create", *words) == 0
        assert fake.calls[-1]["stdin"] == "0 8 zero\n8 8 error\n"
    assert len(fake.calls) == 8
    assert dm("create", "--concise", ";\n;") == ExitCode.USAGE
    assert "there is no device in it" in capsys.readouterr().err
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
    assert capsys.readouterr().out.count('"name": "empty"') == 2


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
        ("status --inactive lin --json", "--inactive is for dmsetup's text"),
        ("info -c -o name --json", "-o is for dmsetup's text"),
        ("create a --udevcookie 5", "a cookie of its own"),
        ("create a --readahead 8", "blockdev --setra"),
        ("create a -U 0", "chown"),
        ("create a -j 254 --table x", "only one major number"),
        ("wipe_table a -f", "wipe_table --noflush --nolockfs"),
        ("table --manglename none", "is always what it is"),
        ("rename lin", "say the new name"),
        (
            "statuss lin",
            "invalid choice: 'statuss' (did you mean 'status'?); see 'dmcopy dm --help'",
        ),
        ("create x --tabel y", "dmcopy dm create: unrecognized arguments: --tabel (did you mean"),
        ("create x --tabel=y", "unrecognized arguments: --tabel=y (did you mean '--table'?)"),
        ("info --no lin", "ambiguous option: --no could match --noheadings, --noopencount"),
        ("--frce remove lin", "unrecognized arguments: --frce (did you mean '--force'?)"),
        ("--select remove lin", "unrecognized arguments: --select"),
        ("--select remove remove lin", "name the devices in one way"),
        ("remove lin -f nosuch --bogus", "unrecognized arguments: --bogus"),
        ("remove --select", "expected one argument"),
        ("create --table --uuid U x", "argument --table: expected one argument"),
        ("remove \x1b[2J -Q", "unrecognized arguments: -Q"),
        ("--\x1b[2J=x remove lin", "unrecognized arguments: --\\x1b[2J=x"),
        ("with", "required: NAME"),
        ("explain", "required: TABLE"),
        ("explain \n", "the table has no lines"),
        ("explain ", "argument TABLE: it is empty"),
        ("create", "say what to call the device"),
        ("create x --minor y", "'y' is not a whole number"),
        ("create x --timeout -1", "is not a number of seconds"),
        ("stats prnt lin", "did you mean 'print'?"),
        ("tree lin", "unrecognized arguments: lin"),
        ("message lin x mark", "'x' is not a sector"),
        ("message lin 0", "say what to send"),
        ("wait lin soon", "'soon' is not the number of an event"),
        ("remove_all", "did not make"),
        ("udevcomplete_all", "let others continue"),
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


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("rename lin --setuuid U", "rename --setuuid -- lin U"),
        ("--setuuid rename lin U", "rename --setuuid -- lin U"),
        ("wait lin --noflush 3", "wait -- lin 3"),
        ("create n -u U FILE", "create --uuid U -- n"),
        ("create -rnuU n", "create --uuid U --readonly --notable -- n"),
        ("--table=0\t8\tzero create n --uuid U", "create --uuid U -- n"),
        ("load n -r FILE", "load --readonly -- n"),
        ("remove n -f", "remove --force -- n"),
        ("--force remove n", "remove --force -- n"),
        ("--f remove n --defer", "remove --deferred --force -- n"),
        ("info lin -c empty", "info --manglename hex -c -- lin empty"),
        ("-v info lin", "info --manglename hex -v -- lin"),
        ("-O -name -c info lin", "info --manglename hex -O -name -c -- lin"),
        ("-o name -c info lin", "info --manglename hex -o name -c -- lin"),
        ("-Cco name info --nohead", "info --manglename hex -C -c -o name --noheadings --"),
        ("info -c -O -name -oname", "info --manglename hex -c -O -name -o name --"),
        ("-u U5 info", "info --manglename hex --uuid U5 --"),
        ("status lin --inactive", "status --manglename hex --inactive -- lin"),
        ("deps --inac lin", "deps --manglename hex --inactive -- lin"),
        ("status lin --noheadings", "status --manglename hex -- lin"),
        ("ls --noheading", "ls --manglename hex --"),
        ("table --show lin", "table --manglename hex --showkeys -- lin"),
        ("--json --timeout 5 deps lin", "deps -o devno -- lin"),
        ("create -n --verifyudev -uU n --addnodeonc -y", "create --uuid U --notable -- n"),
        ("suspend lin --checks --addnodeonresume", "suspend -- lin"),
        ("info a\\x20b", "info --manglename hex -- 'a b'"),
        ("remove a\\x20b", "remove -- 'a b'"),
        ("rename lin a\\x20b", "rename -- lin 'a b'"),
        ("create -n a\\x20b -u U", "create --uuid U --notable -- 'a b'"),
        ("create -n a", "create --notable -- a"),
        (
            "message lin 0 @stats_set_aux 0 foo\\ bar\\ baz",
            r"message -- lin 0 @stats_set_aux 0 'foo\ bar\ baz'",
        ),
        ("message lin 0 mark back\\slash \\\\", r"message -- lin 0 mark backslash '\\'"),
        ("-y mknodes lin", "mknodes -y lin"),
    ],
)
def test_options_may_stand_anywhere_as_with_getopt(
    fake: Fake, tmp_path: Path, words: str, call: str
) -> None:
    (tmp_path / "table").write_text("0 8 zero\n")
    fake.answer(info(LIN, EMPTY), {"words": []})
    split = words.replace("FILE", str(tmp_path / "table")).split(" ")
    assert dm(*(word.replace("\t", " ") for word in split)) == 0
    calls = [text for text in fake.words if not text.startswith("info -c --manglename")]
    assert [text.replace("--noudevsync ", "") for text in calls] == [call]


def test_with_v_a_device_that_was_changed_is_shown(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = "Name:              lin\nEvent number:      5\n"
    fake.answer(
        info(LIN), ok("info", "--manglename", "hex", "--", "lin", stdout=shown), {"words": []}
    )
    for words in ("-v create lin -n", "suspend lin -v", "clear --verb lin", "wait -v lin 0"):
        assert dm(*words.split()) == 0
        assert capsys.readouterr().out == shown
    for words in ("remove -v lin", "rename lin new -v"):
        assert dm(*words.split()) == 0
        assert capsys.readouterr().out == ""


def test_version_is_dmsetups_own(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    text = "Library version:   1.02.185 (2022-05-18)\nDriver version:    4.48.0\n"
    fake.answer(ok("version", stdout=text))
    assert dm("version") == 0
    assert capsys.readouterr().out == text


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
    def out(*words: str) -> Any:
        assert dm(*words, "--json") == 0
        return json.loads(capsys.readouterr().out)

    fake.answer(
        info(LIN),
        ok("status", "--", "lin", stdout="0 8 snapshot 16/128 16\n"),
        ok("table", stdout="lin: 0 8 snapshot 7:0 7:1 P 8\n"),
        ok("deps", stdout="lin: 2 dependencies\t: (7, 0) (7, 1)\n"),
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
    (line,) = out("table")["lin"]
    assert line["values"]["cow"] == "7:1"
    assert line["known"] is True
    assert out("deps") == {"lin": ["7:0", "7:1"]}
    assert out("events") == {"lin": 0}
    below: list[Any] = [{"name": "", "number": number, "below": []} for number in ("7:0", "7:1")]
    assert out("tree") == [{"name": "lin", "number": "254:0", "below": below}]
    (first,) = out("ls")
    assert (first["name"], first["number"], first["live"]) == ("lin", [254, 0], True)


def test_facts_of_all_devices_are_one_call(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    many = [f"d{number}" for number in range(1000)]
    fake.answer(
        info(*(LIN.replace("lin", name) for name in many)),
        ok("status", stdout="".join(f"{name}: 0 8 zero \n" for name in many)),
        ok("table", stdout="".join(f"{name}: 0 8 zero \n" for name in many)),
        ok("deps", stdout="".join(f"{name}: 1 dependencies\t: (7, 0)\n" for name in many)),
    )
    for number, verb in enumerate(("status", "table", "info", "deps", "ls"), start=1):
        assert dm(verb, "--json") == 0
        assert len(json.loads(capsys.readouterr().out)) == 1000
        assert len(fake.calls) == number
    assert dm("ls", "--json", "--target", "zero") == 0
    assert dm("tree") == 0
    assert len(fake.calls) == 9


def test_tree_is_drawn(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    top, low = LIN.replace("lin", "top"), LIN.replace("lin", "low").replace("254|0", "254|1")
    fake.answer(
        info(top, low),
        ok(
            "deps",
            stdout="top: 2 dependencies\t: (254, 1) (7, 1)\nlow: 1 dependencies\t: (7, 0)\n",
        ),
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
    assert dm("explain", "-", "--json") == ExitCode.USAGE
    out, err = capsys.readouterr()
    (line,) = json.loads(out)
    assert (line["target"], line["known"]) == ("tomorrow", False)
    assert err == "dmcopy: unknown target 'tomorrow'\n"


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("0 8 lineer /dev/a 0", "target 'lineer' (did you mean 'linear'?)"),
        ("0 8 zero\n8 8 snap /dev/a 0", "target 'snap' (did you mean 'snapshot'?)"),
        ("0 64 mirror dsk 2 l 8 2 a 0 b 0", "log 'dsk' (did you mean 'disk'?)"),
        ("0 8 origin /dev/a", "target 'origin'"),
    ],
)
def test_explain_of_what_it_does_not_know_is_a_mistake_of_the_line(
    capsys: pytest.CaptureFixture[str], table: str, what: str
) -> None:
    assert dm("explain", table) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out.count("\n") == table.count("\n") + 1
    assert err == f"dmcopy: unknown {what}\n"


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
    code, text = error("create", "one", "--table", " ")
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
    assert [words for words in fake.words if words.startswith("wait")] == [
        *("wait -- lin 4", "wait -- lin 0")  # as dmsetup: any event at all
    ]
    assert dm("stats", "create", "lin", "--bounds", "1,10") == 0
    assert dm("stats", "print", "lin") == 0
    assert dm("stats", "delete", "lin") == 0
    out = capsys.readouterr().out
    assert out == "3\n3: 0+16: 1 reads, 1 sectors; 1 writes, 1 sectors\n"
    assert "message -- lin 0 @stats_delete 3" in fake.words
    assert shlex.split(fake.words[4])[-2:] == ["histogram:1,10", "dmcopy"]


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
        ok("deps", stdout="low: 0 dependencies\t:\ntop: 1 dependencies\t: (254, 1)\n"),
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
