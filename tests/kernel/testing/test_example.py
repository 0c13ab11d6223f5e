"""The example project on a real kernel, as its author runs it there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/backup"

pytestmark = pytest.mark.kernel(either=True, cost=15)


WORDS = ("-q", "-p", "no:cacheprovider", "--dm=host", "--dm-strict")


def test_the_example(tmp_path: Path) -> None:
    project = tmp_path / "backup"
    shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns("__pycache__"))
    said = tmp_path / "said"
    with said.open("wb") as output:
        if os.environ.get("DMCOPY_TEST") == "long":
            subprocess.run(
                [sys.executable, "-m", "pytest", *WORDS],
                cwd=project,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=900,
                check=False,
            )
        else:
            forked(project, output.fileno())
    assert "6 passed" in said.read_text()


def forked(project: Path, output: int) -> None:
    """Run pytest in a fork of this process: a new one takes a guest ten seconds to start."""
    child = os.fork()
    if not child:
        try:
            for fd in (1, 2):
                os.dup2(output, fd)
            sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
            sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # type: ignore[misc]  # noqa: SIM115
            os.chdir(project)
            sys.argv = ["pytest", *WORDS]
            # Its plugin would import it at the end, to say that there is nothing to say.
            pytest.main([*WORDS, "-p", "no:hypothesispytest"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    os.waitpid(child, 0)
