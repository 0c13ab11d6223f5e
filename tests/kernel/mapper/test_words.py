"""The same words for dmsetup and for `dmcopy dm`: the same exit code, output and devices."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmcopy.cli.main import main
from dmcopy.ledger import Ledger
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.reap import Reaper
from tests.kernel.snapshot.ioctls import IoctlMapper

from .conftest import Disks

pytestmark = pytest.mark.kernel(either=True, cost=2)

Answer = tuple[int, str]

# What was there, and what is typed then. FILE is a table, A a disk.
WORDS = r"""
create n --table '0 8 zero' / rename n --setuuid U
create n --table '0 8 zero' / --setuuid rename n U
create n FILE / wait n --noflush 7 / -v wait n 7 / wait -v n 7
 / create n -u U FILE
create n FILE / create m --verifyudev --addnodeonc FILE / create \
k --addnodeonresume --checks -y FILE
 / -v create n --table '0 8 zero' / -u U info
 / --noudevsync create n -ruU FILE / -u U info -c -o name,uuid,readonly
 / create --concise -v < n,U,,rw,0 8 zero;m,,,ro,0 8 zero,8 8 error
 / create 'n,U,,rw,0 8 zero' --concise / table --concise
create n FILE / load n -r FILE / suspend -v n / resume n -v / load -v n FILE / clear n -v
create n FILE / create m FILE / remove n -f m
create n FILE / --force remove n
create n FILE / create m FILE / info n -c m / -Cco name info m --nohead / -o devname deps n
create n FILE / load n --table '0 8 linear A 0' / status --inac n / deps n --inactive / deps n
create n FILE / status n --noheadings / ls --noheading / table --show n / info --noop n / ls -v
create n --table '0 8 linear A 0' / message n 0 @stats_create - 8 / message n 0 @stats_set_aux 0 \
foo\\ bar\\ baz / message n 0 @stats_list
create n FILE / create n --table '0 8 linear A 0' / create m -u U FILE / create k -u U FILE
create n FILE / create m FILE / rename n m / rename n n / rename n k -v
create 'a b' FILE / info a\\x20b / table a\\x20b / rename a\\x20b c\\x20d / remove c\\x20d
create 'a b' FILE / status -v 'a\x20b' --noheadings / create a\\x20c FILE / info -c 'a c'
create 'my disk' --table '0 8 linear A 0' / create myx20disk --table '0 8 linear A 8' / create \
t --table '0 8 linear /dev/mapper/my\x20disk 0' / deps -o devname t
create 'my disk' --table '0 8 linear A 0' / create myx20disk --table '0 8 linear A 8' / create \
--concise 't,,,rw,0 8 linear /dev/mapper/my\x20disk 0' / deps -o devname t
create 'my disk' --table '0 8 linear A 0' / create --concise \
't,,,rw,0 8 linear /dev/mapper/my\\x20disk 0' / deps -o devname t
 / version / targets -y / ls / ls --tree / status / info -c
"""


def dmsetup(*words: str, stdin: str = "") -> Answer:
    done = subprocess.run(
        ["dmsetup", *words], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout


def dmcopy(*words: str, stdin: str = "") -> Answer:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr("sys.stdin", io.StringIO(stdin))
        code = main(["dm", *words])
    return code, out.getvalue()


def _typed(
    run: Callable[..., Answer], line: str, ioctls: IoctlMapper
) -> list[tuple[int, str, object]]:
    """Run each command of a line; return what each gave, and what was there then."""
    found: list[tuple[int, str, object]] = []
    for command in line.split(" / "):
        text, _, stdin = command.partition(" < ")
        if text.strip():
            code, out = run(*shlex.split(text), stdin=stdin)
            found.append((code, out, _there(ioctls)))
    return found


def _there(ioctls: IoctlMapper) -> list[object]:
    """Return what there is to see of each device, once udev has none of them open."""
    deadline = time.monotonic() + 60
    while Path("/run/udev/queue").exists():  # as udevadm settle has it
        assert time.monotonic() < deadline, "waited 60 s for udev to have nothing to do"
        time.sleep(0.01)
    return [
        (
            *(one.name, one.uuid, one.open_count, one.segments, one.live, one.inactive),
            *(one.suspended, one.readonly, ioctls.table_text(one.name)),
        )
        for one in ioctls.ls()
    ]


def _remove_all(ioctls: IoctlMapper) -> None:
    for _ in range(4):  # dmsetup stops at one that is in use
        found = sorted(ioctls.ls(), key=lambda one: one.open_count)
        if found:
            dmsetup("remove", "--manglename", "none", "--", *(one.name for one in found))


@pytest.fixture
def own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    path = tmp_path / "own.jsonl"
    monkeypatch.setattr("dmcopy.ledger.default_path", lambda: path)
    return Ledger(path)


@pytest.mark.usefixtures("own_ledger")
@pytest.mark.parametrize("line", WORDS.replace("\\\n", "").strip("\n").splitlines())
def test_they_mean_the_same(disks: Disks, ioctls: IoctlMapper, tmp_path: Path, line: str) -> None:
    (tmp_path / "table").write_text("0 8 zero\n")
    line = re.sub(r"\bA\b", disks.a, line).replace("FILE", str(tmp_path / "table"))
    assert _there(ioctls) == []
    try:
        wanted = _typed(dmsetup, line, ioctls)
        _remove_all(ioctls)
        got = _typed(dmcopy, line, ioctls)
    finally:
        _remove_all(ioctls)
    assert got == wanted


def test_a_name_or_uuid_that_exists_is_the_reason(
    mapper: KernelMapper, disks: Disks, own_ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    mapper.create("n", uuid="U")
    for words in (
        ("create", "n", "--table", f"0 8 linear {disks.a} 0"),
        ("create", "m", "-u", "U", "--table", f"0 8 linear {disks.a} 0"),
        ("rename", "n", "n"),
    ):
        assert dmcopy(*words)[0] == 1
        assert "a mapped device has this name or UUID already" in capsys.readouterr().err
    assert own_ledger.entries() == []
    assert mapper.info("n").uuid == "U"  # which was not taken for ours and removed
    assert dmcopy("rename", "n", "--setuuid", "V")[0] == 1
    assert "it has the UUID U already" in capsys.readouterr().err
    mapper.remove("n")


def test_what_create_made_is_known_by_its_disk(
    mapper: KernelMapper, own_ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stays", "renamed", "replaced", "theirs"):
        assert dmcopy("create", name, "--table", "0 8 zero")[0] == 0
    assert mapper.info("stays").uuid == ""
    dmsetup("rename", "renamed", "other")
    dmsetup("rename", "stays", "--setuuid", "U")
    dmsetup("remove", "replaced")
    dmsetup("create", "replaced", "--table", "0 8 zero")
    mapper.create("bare")  # in another ledger
    assert dmcopy("create", "empty", "--notable")[0] == 0
    result = Reaper(mapper, own_ledger, wanted=lambda entry: entry.keep).run()
    assert {entry.name for entry in result.removed} == {"stays", "renamed", "theirs"}
    assert {entry.name for entry in result.vanished} == {"replaced"}
    assert "nothing tells whether it is the one" in result.left["empty"]
    assert [info.name for info in mapper.ls()] == ["bare", "empty", "replaced"]
    for name in ("bare", "empty", "replaced"):
        mapper.remove(name)
    assert capsys.readouterr().err == ""


def test_all_devices_are_told_apart_whatever_their_names(
    mapper: KernelMapper, ioctls: IoctlMapper
) -> None:
    made = ["a: b", "0 8 zero", "n: 0 8 zero", "line\nbreak", "é", "n", "back\\slash"]
    for number, name in enumerate(made, start=1):
        dmsetup("create", "--manglename", "hex", "--table", f"0 {8 * number} zero", "--", name)
    dmsetup("create", "--manglename", "none", "--table", "0 8 error", "--", "by: hand")
    try:
        lengths = {name: table.length for name, table in mapper.tables().items()}
        assert lengths == {
            **{name: 8 * number for number, name in enumerate(made, start=1)},
            "by: hand": 8,
        }
        assert set(mapper.statuses()) == set(lengths)
        assert set(mapper.all_deps()) == set(lengths)
        code, out = dmcopy("status", "--json")
        assert (code, set(json.loads(out))) == (0, set(lengths))
    finally:
        _remove_all(ioctls)
