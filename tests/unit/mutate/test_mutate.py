"""`./scripts/mutate` on a small project of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mutate.__main__ import ROOT, mirrored

MODULE = """
def larger(a, b):
    return a if a > b else b

def forever(a):
    while True:
        a -= 1
        if a < 0:
            return
"""
TESTS = """
from toy.sums import forever, larger

def test_it():
    assert larger(1, 2) == 2
    assert larger(2, 1) == 2
    forever(1)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("toy/sums.py", MODULE), ("tests/unit/test_sums.py", TESTS)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def mutate(project: Path, *words: str, of: str = "toy/sums.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.mutate", "--root", str(project), of, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_survives_is_told_and_nothing_is_changed(project: Path) -> None:
    # The tests of the second module are those of the first, which must be whole again by then.
    (project / "toy/sums_too.py").touch()
    shutil.copy(project / "tests/unit/test_sums.py", project / "tests/unit/test_sums_too.py")
    done = mutate(project, "toy/sums_too.py", "--line", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "toy/sums.py:3: survives: a > b  →  a >= b",
        "toy/sums.py: 3 of 4 caught (75%)",
        "toy/sums_too.py: 0 of 0 caught",
        "all: 3 of 4 caught (75%)",
    ]
    assert (project / "toy/sums.py").read_text() == MODULE
    assert not list(project.rglob("__pycache__"))


def test_nothing_is_left_when_it_is_ended(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("place")
    waits = f"import os, pathlib, time\n\ndef test_it():\n    os.mkfifo('{place}/begun')\n"
    waits += (
        f"    pathlib.Path('{place}/begun').write_text(str(os.getpid()))\n    time.sleep(300)\n"
    )
    (project / "tests/unit/test_sums.py").write_text(waits)
    command = [sys.executable, "-m", "tests.mutate", "--root", str(project), "toy/sums.py"]
    run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(place)})
    try:
        while not (place / "begun").exists():
            assert run.poll() is None
            time.sleep(0.05)
        tests = int((place / "begun").read_text())
        run.terminate()
        assert run.wait(60) == 143
    finally:
        run.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(tests, 0)
    assert [path.name for path in place.iterdir()] == ["begun"]


def test_a_sample_has_its_size(project: Path) -> None:
    assert "of 1 caught" in mutate(project, "--line", "3", "--sample", "1", "--seed", "2").stdout


def test_a_package_is_all_of_its_modules(project: Path) -> None:
    shutil.copy(project / "toy/sums.py", project / "toy/more.py")
    tests = (project / "tests/unit/test_sums.py").read_text().replace("toy.sums", "toy.more")
    (project / "tests/unit/test_more.py").write_text(tests)
    found = mutate(project, "--line", "3", of="toy").stdout.splitlines()
    assert found[1::2] == [
        "toy/more.py: 3 of 4 caught (75%)",
        "toy/sums.py: 3 of 4 caught (75%)",
    ]
    assert found[4:] == ["all: 6 of 8 caught (75%)"]
    # Of either one may be drawn, both of one, or one of each.
    sampled = mutate(project, "--line", "3", "--sample", "2", "--seed", "3", of="toy").stdout
    told = [line.split() for line in sampled.splitlines() if " caught (" in line]
    assert sum(int(words[3]) for words in told if words[0] != "all:") == 2


@pytest.mark.parametrize("options", ["", "-rs", "-rN --tb=no -v"])
def test_tests_that_fail_by_themselves_tell_nothing(
    project: Path, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them is told, with any options that pytest takes from the environment."""
    monkeypatch.setenv("PYTEST_ADDOPTS", options)
    (project / "tests/unit/test_sums.py").write_text("def test_it():\n    assert False\n")
    done = mutate(project)
    assert (done.returncode, done.stdout) == (1, "")
    assert "FAILED tests/unit/test_sums.py::test_it" in done.stderr
    assert done.stderr.endswith("toy/sums.py: its tests fail without any change\n")


def test_the_tests_are_those_that_mirror_the_module() -> None:
    tests = mirrored(ROOT, Path("dmcopy/targets/mirror.py"))
    assert "tests/unit/targets/test_mirror.py" in tests
    assert "tests/simulated/targets/test_mirror_crash.py" in tests
    loops = "tests/loop/cow/test_loops.py" in mirrored(ROOT, Path("dmcopy/cow/merge.py"))
    assert loops == (os.geteuid() == 0)
    assert mirrored(ROOT, Path("dmcopy/ranges.py")) == ["tests/unit/test_ranges.py"]
