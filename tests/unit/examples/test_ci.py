"""The recipe for a CI service: the guide's lines, with stand-ins for what a runner installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dmcopy.block import file_mounts, tools
from tests.docs.blocks import ROOT, read_block

STUBS = {
    "bin/sudo": """echo "$@" >> "$LOG" """,
    "bin/python3": """test "$*" = "-m venv .venv"; mkdir -p .venv/bin; cp stubs/* .venv/bin""",
    "stubs/pip": """echo "pip $@" >> "$LOG" """,
    "stubs/pytest": 'PYTEST_ADDOPTS= exec "$PYTHON" -m pytest -q -p no:cacheprovider "$@" $ONLY',
}
KNOWN = {"python3-venv", "busybox-static", "zstd", "udev", "kmod", *tools.PACKAGES.values()}


@pytest.mark.skipif(bool(file_mounts.why_not()), reason=file_mounts.why_not())
def test_the_recipe(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    guests = pytestconfig.getoption("--vm")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "tests/examples/backup", project)
    for name, script in STUBS.items():
        path = project / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nset -e\n{script}\n")
        path.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{project}/bin:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "ONLY": "" if guests else "--collect-only",
        "LOG": str(project / "log"),
    }
    done = subprocess.run(
        ["bash", "-c", read_block("dmcopy/guide/testing.md")],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = "18 passed" in done.stdout if guests else done.stdout.count("py::test_") == 18
    assert told, done.stdout
    said = (project / "log").read_text().splitlines()
    installed = said[1].partition("--no-install-recommends ")[2].split()
    assert said[0] == "apt-get update"
    assert set(installed) <= KNOWN
    assert said[-1] == "pip install dmcopy[pytest]"
    assert ("chmod 0666 /dev/kvm" in said) == os.path.exists("/dev/kvm")
