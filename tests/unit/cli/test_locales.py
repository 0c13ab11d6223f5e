"""Names of any bytes under locales that are not UTF-8: the same files, and a sentence where not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.errors import ExitCode

NAMES = [b"d\xe9", "d\u00e9".encode(), "d\u65e5".encode()]
DATA = bytes(range(256)) * 32
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(scope="session")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Latin-1 locale, which is made for it."""
    if not shutil.which("localedef") or not Path("/usr/share/i18n/charmaps").is_dir():
        pytest.skip("a Latin-1 locale cannot be made here: apt-get install locales")
    folder = tmp_path_factory.mktemp("locales")
    words = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    subprocess.run(words, check=True, timeout=60, capture_output=True)
    return {"LC_ALL": "en_US.ISO-8859-1", "LOCPATH": str(folder), "PYTHONUTF8": "0"}


@pytest.fixture(params=["latin-1", "latin-1 streams", "ascii"])
def locale(request: pytest.FixtureRequest) -> dict[str, str]:
    if request.param == "ascii":
        return ASCII
    if request.param == "latin-1":
        found: dict[str, str] = request.getfixturevalue("latin1")
        return found
    return {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("source").write_bytes(DATA)


def python(locale: dict[str, str], *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "XDG_STATE_HOME": os.getcwd(), **locale}
    return subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, timeout=60, check=False
    )


def dmcopy(locale: dict[str, str], *words: str | bytes) -> subprocess.CompletedProcess[bytes]:
    done = python(locale, "-m", "dmcopy", *words)
    assert b"Traceback" not in done.stderr
    return done


def test_a_name_is_its_bytes(locale: dict[str, str]) -> None:
    for said in (b": ok, 8 KiB written", b"nothing to do"):
        done = dmcopy(locale, "copy", "--map", b"m\xe9", "source", *NAMES)
        assert (done.returncode, done.stderr) == (0, b"")
        assert said in done.stdout
    assert {name for name in os.listdir(b".") if name[:1] == b"d"} == {*NAMES}
    for name in NAMES:
        with open(name, "rb") as file:
            assert file.read() == DATA
    for name in (*NAMES, b"LABEL=" + NAMES[0]):
        done = dmcopy(locale, "devices", "who", b"no" + name)
        assert (done.returncode, done.stderr.count(b"\n")) == (ExitCode.USAGE, 1)


def test_a_mapped_device_and_a_path_in_a_table_are_their_bytes(locale: dict[str, str]) -> None:
    code = "import sys; from dmcopy.mapper import dmsetup, names; a = sys.argv[1]; "
    code += "b = names.mangle(a); assert names.unmangle(b) == a; "
    code += "print(b, dmsetup._bytes(a), dmsetup._text(dmsetup._bytes(a)) == a)"
    for name in NAMES:
        mangled = "".join(rf"\x{byte:02x}" if byte > 127 else chr(byte) for byte in name)
        done = python(locale, "-c", code, name)
        assert done.stdout.decode() == f"{mangled} {name!r} True\n"
    done = dmcopy(locale, "dm", "create", NAMES[0], "--table", "0 8 zero", "--dry-run")
    assert done.returncode == 0
    Path(os.fsdecode(NAMES[0])).write_bytes(DATA)
    table = b"0 8 linear " + os.fsencode(Path.cwd()) + b"/" + NAMES[0] + b" 0"
    done = dmcopy(locale, "dm", "run", "--engine", "user", "--table", table, "read 0 1")
    assert done.returncode == 0
    assert b"00 01 02 03" in done.stdout


def test_a_name_that_the_locale_lacks_is_one_sentence() -> None:
    """It is in a ledger that was written under another locale, and stays there."""
    code = "import sys; from pathlib import Path; from dmcopy import ledger; "
    code += "ledger.default_path = lambda: Path('ledger'); "
    note = "ledger.Ledger().add('loop', '/dev/loop\u65e5', keep=True)"
    assert python({"LC_ALL": "C.UTF-8"}, "-c", code + note).returncode == 0
    reap = "from dmcopy.cli.main import main; sys.exit(main(['dm', 'reap', '--all']))"
    for _ in range(2):
        done = python(ASCII, "-c", code + reap)
        said = done.stderr.decode()
        assert (done.returncode, said.count("\n")) == (ExitCode.FAILED, 1)
        assert "loop\\u65e5" in said
        assert said.endswith(": the locale's ascii lacks this: set LC_ALL=C.UTF-8\n")
