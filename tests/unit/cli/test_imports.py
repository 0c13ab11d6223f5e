"""What short commands do not import: most of their time would go into it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cow.stores import allocate, build

HEAVY = {
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "difflib",
    "hashlib",
    "inspect",
    "json",
    "logging",
    "pathlib",
    "pyudev",
    "random",
    "rich",
    "secrets",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "urllib",
}

_ENGINE = {*HEAVY, "ctypes", "dmcopy.block", "dmcopy.io", "dmcopy.transfer"}


def _imported(*words: str) -> set[str]:
    """Return the modules that `dmcopy WORDS` imports, for which it must end well."""
    command = [sys.executable, "-X", "importtime", "-m", "dmcopy", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    # "import time:       578 |        578 |       warnings"
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}


@pytest.mark.parametrize(
    "noun",
    [
        "completion",
        "copy",
        "cow",
        "demo",
        "devices",
        "doctor",
        "guide",
        "mirror-log",
        "schema",
        "zero",
    ],
)
def test_a_help_imports_nothing_of_the_engine(noun: str) -> None:
    imported = _imported(noun, "--help")
    assert "dmcopy.cli.main" in imported
    assert not imported & _ENGINE


@pytest.mark.parametrize("words", ["--version", "--help", "cow info --help"])
def test_nor_does_what_is_of_no_noun_or_of_a_verb(words: str) -> None:
    assert not _imported(*words.split()) & _ENGINE


def test_a_copy_to_a_new_file_imports_what_it_works_with(tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "dest"
    source.write_bytes(b"a" * 4096 * 4)
    # ctypes is needed: it is how a file says what O_DIRECT wants of it, and where memory is.
    assert not _imported("copy", str(source), str(dest)) & HEAVY
    assert dest.read_bytes() == source.read_bytes()


def test_zeroing_a_new_file_imports_what_it_works_with(tmp_path: Path) -> None:
    assert not _imported("zero", "--count", "1M", str(tmp_path / "dest")) & HEAVY


@pytest.mark.parametrize("verb", ["info", "dump", "check"])
def test_looking_at_a_store_imports_nothing_that_copies(verb: str, tmp_path: Path) -> None:
    cow = tmp_path / "cow"
    cow.write_bytes(build(8, allocate([3, 4], 8), 300))
    imported = _imported("cow", verb, str(cow))
    assert not imported & {*HEAVY, "dmcopy.io.reactor", "dmcopy.kcopyd", "dmcopy.transfer"}


def test_a_client_of_the_device_server_imports_nothing_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMCOPY_RUNTIME_DIR", str(tmp_path))
    imported = _imported("dm", "ls", "--engine", "user")
    places = {".".join(name.split(".")[:2]) for name in imported}
    assert not places & {f"dmcopy.{place}" for place in ("export", "io", "kcopyd", "targets")}
    assert not imported & {"hashlib", "random"}


def test_a_verb_of_dm_imports_nothing_of_the_others() -> None:
    """What takes longer than dmsetup itself, in a guest that is emulated four times as long."""
    imported = _imported("dm", "ls", "--help")
    assert not imported & {"hashlib", "random", "socket", "uuid", "dmcopy.mapper.reap"}


def test_the_shim_imports_next_to_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.append({str(Path(__file__).parents[3])!r})
sys.argv = ["dmsetup", "ls"]
import os
os._exit = sys.exit
from dmcopy.shim.main import main
try:
    main()
finally:
    sys.stderr.write("\\n".join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-ISE", "-c", script],
        env={"DMCOPY_RUNTIME_DIR": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "No devices found\n"
    imported = set(done.stderr.split())
    assert "dmcopy.shim.served" in imported
    needed = {"json", "socket"}
    heavy = {
        *HEAVY,
        "typing",
        "argparse",
        "ctypes",
        "dmcopy.block",
        "dmcopy.mapper",
        "dmcopy.table",
    }
    assert not imported & (heavy - needed)
