"""Targets of a user's own: registered by a class, found by --plugin and by entry point."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dmcopy import plugins
from dmcopy.cli.main import main
from dmcopy.errors import DeviceError, UsageError
from dmcopy.io import Reactor
from dmcopy.io.simulated import SimulatedBackend, SimulatedDisk
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import StatusLine
from dmcopy.table import TARGETS as TABLE_TARGETS
from dmcopy.table import Line, Raw, Table, TableError, device_field, number_field
from dmcopy.targets import TARGETS
from tests.docs.blocks import read_block
from tests.unit.targets.examples import forgotten

ROTATE = '''
from typing import ClassVar

from dmcopy.status import Status
from dmcopy.table import Line, TableLine, device_field, number_field
from dmcopy.targets import REMAPPED, Bio, Host, Map, Target, register


@register
class Rotate(Target):
    """`rotate <device> <by>`: chunks of 8 sectors, each `by` chunks further on."""

    name: ClassVar[str] = "rotate"
    max_io_len = max_discard = 8
    flush_bios = discard_bios = 1

    class Words(Line):
        device: str = device_field()
        by: int = number_field(0, 7)

    value: Words

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self.device = host.open(self.value.device)
        host.use(self.device, 0, self.length)
        self.bios = 0

    def map(self, bio: Bio) -> Map:
        self.bios += 1
        bio.device = self.device
        bio.sector = (bio.sector - self.begin + self.value.by * 8) % self.length
        return REMAPPED

    def status(self) -> str:
        return f"{self.bios} bios"

    def message(self, words: tuple[str, ...]) -> str:
        return str({}[words[0]])
'''
TABLE = "0 64 rotate {} 2"
NAMES = ("plug", "plug2")
Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Write a module, under a name of its own, with the text changed; return its name.

    With `package`, it is the entry point of an installed package.
    """
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(old: str = "", new: str = "", *, name: str = "plug", package: str = "") -> str:
        assert old in ROTATE
        (tmp_path / f"{name}.py").write_text(ROTATE.replace(old, new, 1) if old else ROTATE + new)
        if package:
            info = tmp_path / f"{package}-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
            (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nrotate = {name}\n")
        plugins.offered.cache_clear()
        return name

    with forgotten(*NAMES, __name__):
        yield write
    plugins.offered.cache_clear()


@pytest.fixture
def mapper() -> Iterator[UserMapper]:
    disks = {(path, write): SimulatedDisk(64, path) for path in "ab" for write in (False, True)}
    reactor = Reactor(SimulatedBackend(7), stacked=True)
    with reactor, UserMapper(reactor, open_device=lambda *key: disks[key]) as made:
        yield made


def test_its_table_is_a_value_and_the_same_text_again(make: Make) -> None:
    plugins.load(make())
    table = Table.parse(TABLE.format("/dev/a\\ b"))
    assert str(table) == TABLE.format("/dev/a\\ b")
    value = table.lines[0].target
    assert (value.device, value.by) == ("/dev/a b", 2)  # type: ignore[attr-defined]
    assert table.devices == ("/dev/a b",)
    assert table.with_devices(str.upper).devices == ("/DEV/A B",)
    assert table.canonical() == table
    assert "'rotate' of module plug" in value.describe()
    for words, said in (("a", "by is missing"), ("a 8", "from 0 to 7"), ("a 1 1", "one too many")):
        with pytest.raises(TableError, match=said):
            Table.parse(f"0 64 rotate {words}")


def test_it_runs_as_those_of_dmcopy_do(make: Make, mapper: UserMapper) -> None:
    plugins.load(make())
    mapper.create("d", Table.parse(TABLE.format("a")))
    device = mapper.open("d")
    device.write(40, bytes(range(256)) * 2 * 24)
    assert device.read(40, 24) == bytes(range(256)) * 2 * 24
    device.discard(40, 24)
    assert device.read(0, 64) == bytes(64 << 9)
    assert mapper.deps("d") == ("a",)
    assert str(mapper.table("d")) == TABLE.format("a")
    assert str(mapper.status("d")[0]) == f"0 64 rotate {3 + 3 + 3 + 8} bios"
    assert mapper.targets()["rotate"] == (1, 0, 0)


def test_its_status_line_may_have_a_type(make: Make) -> None:
    own = """    value: Words

    @dataclass(frozen=True)
    class Status(Status):
        bios: int = number_field()
        word: str = word_field(choices=("bios",))
"""
    make("    value: Words\n", own)
    path = Path(sys.path[0]) / "plug.py"
    imports = "from dataclasses import dataclass\nfrom dmcopy.table import word_field\n"
    path.write_text(imports + path.read_text())
    plugins.load("plug")
    line = StatusLine.parse("0 64 rotate 7 bios")
    assert line.status.bios == 7  # type: ignore[attr-defined]
    assert str(line) == "0 64 rotate 7 bios"


def test_a_target_without_words_of_its_own(make: Make) -> None:
    text = """
from dmcopy.targets.linear import Linear
from dmcopy.targets.snapshot import Snapshot

@register
class Plain(Target):
    name: ClassVar[str] = "plain"

@register
class Mine(Snapshot):
    name = "my-snapshot"
"""
    plugins.load(make("", text))
    assert str(Table.parse("0 8 plain")) == "0 8 plain"
    text = "0 64 my-snapshot a b PO 8 1 discard_zeroes_cow"
    table = Table.parse(text)
    assert (str(table), table.lines[0].target_name) == (text, "my-snapshot")
    with pytest.raises(TableError, match="my-snapshot: chunk_size '3' must be a power of two"):
        Table.parse("0 64 my-snapshot a b PO 3")
    status = StatusLine.parse("0 64 my-snapshot Invalid")
    assert (str(status), bool(status.status.trouble)) == ("0 64 my-snapshot Invalid", True)
    assert Table.parse("0 64 snapshot a b P 8").lines[0].target.name == "snapshot"


def run(*words: str, table: str = TABLE) -> int:
    disk = Path("disk.img")
    disk.write_bytes(bytes(64 << 9))
    return main(["dm", "run", "--engine", "user", "--table", table.format("disk.img"), *words])


BAD = [
    ('"rotate"', '"linear"', 2, r"Rotate cannot be target 'linear', which dmcopy\.targets\.linear"),
    ('"rotate"', '"crypt"', 2, "Words cannot be target 'crypt', which dmcopy.table.crypt has"),
    ('"rotate"', '"a b"', 2, "Rotate.name is 'a b': it must be 1 to 15 visible characters"),
    ('    name: ClassVar[str] = "rotate"\n', "", 2, "Rotate.name is None"),
    ("", "\n@register\nclass Other(Target):\n    name = 'rotate'\n", 2, "which plug has"),
    ("", "1 / 0\n", 1, "cannot be imported: ZeroDivisionError: division by zero"),
    ("", "x = (\n", 1, "cannot be imported: SyntaxError: '.' was never closed"),
    ("", "raise SystemExit(7)\n", 1, "cannot be imported: SystemExit: 7"),
    ("", "import plug_needs_it\n", 5, "needs the module plug_needs_it, which is not here"),
    ("self.bios = 0", "self.bios = nothing", 1, "target 'rotate' raised NameError: name 'nothing'"),
    ("{self.bios} bios", "{self.no}", 1, "cannot read its status: .* raised AttributeError"),
    ("= max_discard = 8", "= 8", 1, "cut at 8 sectors and its discards not: set max_discard"),
    ("= max_discard = 8", "= 8; max_discard = 16", 1, "its discards not"),
]


@pytest.mark.parametrize(("old", "new", "code", "said"), BAD)
def test_what_is_wrong_with_it_is_one_sentence(
    old: str,
    new: str,
    code: int,
    said: str,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--plugin", make(old, new), "read 0 8", "status") == code
    error = capsys.readouterr().err
    assert error.startswith("dmcopy: ")
    assert error.count("\n") == 1
    assert re.search(said, error), error


def test_one_that_is_refused_leaves_nothing(make: Make) -> None:
    with pytest.raises(UsageError, match=r"plug: Rotate\.Words cannot be target 'crypt'"):
        plugins.load(make('"rotate"', '"crypt"'))
    assert "crypt" not in TARGETS


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("raise ValueError('odd')", "ValueError: odd"),
        ("return None", "TypeError: map() returned None and no Map"),
    ],
)
def test_what_a_map_does_wrong_is_told_once(
    new: str,
    said: str,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    module = make("        self.bios += 1", f"        {new}")
    assert run("--plugin", module, "write 0 32 seq", "read 0 8", "status") == 1
    out, error = capsys.readouterr()
    assert out.splitlines()[-1] == "dev: status: 0 64 rotate 0 bios"
    ours = [line for line in error.splitlines() if said in line]
    (line,) = ours
    assert line.startswith(f"dmcopy: {said}; target 'rotate' of ")
    assert line.endswith(" raised it; the I/O ends with EIO")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("./plug.py", "this is a path"),
        ("plug.py", "this is a path"),
        ("no_such_plug", "there is no module no_such_plug"),
        ("no_such_plug.targets", "there is no module no_such_plug;"),
        (".plug", "plugin '.plug': this is no name of a module"),
    ],
)
def test_what_is_no_module_is_said(
    module: str, said: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    assert main(["dm", "explain", f"--plugin={module}", "0 8 zero"]) == 2
    assert said in capsys.readouterr().err


def test_ranges_need_no_cut(make: Make, mapper: UserMapper) -> None:
    plugins.load(make("= max_discard = 8", "= 8\n    maps_ranges = True"))
    mapper.create("d", Table.parse(TABLE.format("a")))


def test_a_message_that_raises_is_refused(make: Make, mapper: UserMapper) -> None:
    plugins.load(make())
    mapper.create("d", Table.parse(TABLE.format("a")))
    with pytest.raises(DeviceError, match="'rotate' raised KeyError: 'word'"):
        mapper.message("d", "word")


def test_the_entry_point_that_the_guide_shows() -> None:
    (groups,) = tomllib.loads(read_block("dmcopy/guide/targets.md"))["project"].values()
    assert list(groups) == [plugins.GROUP]
    assert "rotate" in groups[plugins.GROUP]


def test_an_entry_point_is_imported_when_a_table_names_its_target(make: Make) -> None:
    make(package="plug-package")
    assert not isinstance(Table.parse("0 8 zero").lines[0].target, Raw)
    assert isinstance(Table.parse("0 8 rotates a 1").lines[0].target, Raw)
    assert "plug" not in sys.modules
    assert str(Table.parse(TABLE.format("a"))) == TABLE.format("a")
    assert "plug" in sys.modules
    assert TARGETS.find("rotate") is not None


class Plain(Line):
    """Words that tables know, of a target that dmcopy has not and never will have."""

    name = "plain"
    device: str = device_field()
    offset: int = number_field(0, 1000)


def test_one_of_a_name_that_tables_know(make: Make, mapper: UserMapper) -> None:
    """The words are there before, as dmcopy's are; the target in userspace is the package's."""
    TABLE_TARGETS.register(Plain)
    own = "\n@register\nclass Own(Linear):\n    name = 'plain'\n"
    make("", f"\nfrom dmcopy.targets.linear import Linear\n{own}", package="plug-package")
    info = next(Path(sys.path[0]).glob("*.dist-info"))
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nplain = plug:Own\n")
    table = Table.parse("0 64 plain a 0")
    assert "plug" not in sys.modules
    mapper.create("d", table)
    assert "plug" in sys.modules
    assert str(mapper.table("d")) == str(table)


def test_a_broken_one_breaks_only_what_names_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make("@register", "1 / 0", package="plug-package")
    assert run("read 0 8", table="0 64 linear {} 0") == 0
    assert main(["dm", "explain", "0 64 zero"]) == 0
    capsys.readouterr()
    assert run("read 0 8") == 1
    said = "dmcopy: target 'rotate' of package plug-package cannot be imported: ZeroDivisionError"
    assert capsys.readouterr().err.startswith(said)
    # What the kernel printed is read all the same.
    assert isinstance(Table.read(TABLE.format("a")).lines[0].target, Raw)


def test_one_that_two_packages_offer_is_refused(make: Make) -> None:
    make(package="plug-package")
    make(name="plug2", package="plug2-package")
    with pytest.raises(UsageError, match="the packages plug-package and plug2-package: uninstall"):
        Table.parse(TABLE.format("a"))
