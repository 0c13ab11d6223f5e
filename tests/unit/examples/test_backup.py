"""The example project, as its author has it: dmcopy from a wheel in a virtual environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import file_mounts
from dmcopy.testing import needs

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "tests/examples/backup"
SECONDS = 500

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("hatchling"), reason="no hatchling to build a wheel with"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, beside a virtual environment with the wheel of this tree.

    pytest and what dmcopy depends on come from the environment that this test runs in.
    """
    folder = tmp_path_factory.mktemp("example")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, *build, "-w", folder, ROOT)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    wheel = next(folder.glob("*.whl"))
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    packages = next(folder.glob("venv/lib/python*/site-packages"))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    shutil.copytree(EXAMPLE, folder / "backup", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "backup"


def run(*words: str | os.PathLike[str], cwd: Path | None = None) -> str:
    environment = {**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [os.fspath(word) for word in words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def outcome(project: Path, *words: str) -> str:
    python = project.parent / "venv/bin/python"
    where = "import dmcopy; print(dmcopy.__file__)"
    assert str(project.parent) in run(python, "-c", where, cwd=project)
    return run(python, "-m", "pytest", "-q", *words, cwd=project)


@pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())
def test_on_the_model(project: Path) -> None:
    assert "6 passed" in outcome(project, "--dm-strict")


@pytest.mark.skipif(bool(needs.missing_here()), reason=f"here: {needs.missing_here()}")
def test_on_this_kernel(project: Path) -> None:
    assert "6 passed" in outcome(project, "--dm=host", "--dm-strict")


def test_in_guests(project: Path, pytestconfig: pytest.Config) -> None:
    kernels = pytestconfig.getoption("--vm")
    if not kernels:
        pytest.skip("boots guests: only with --vm")
    count = 6 * len(kernels.split(","))
    assert f"{count} passed" in outcome(project, f"--vm={kernels}", "--dm-strict")


def test_what_comes_with_the_wheel(project: Path) -> None:
    venv = project.parent / "venv"
    for words, said in {
        "guide snapshots": "# Snapshots",
        "schema cow info": '"$id"',
        "completion bash": "complete -o",
        "completion zsh": "#compdef dmcopy",
        "completion fish": "complete -c dmcopy",
    }.items():
        assert said in run(venv / "bin/dmcopy", *words.split(), cwd=project), words
    assert (venv / "share/man/man1/dmcopy-snapshot.1").is_file()
