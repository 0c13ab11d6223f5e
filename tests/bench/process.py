"""Running one command and measuring it: wall clock, its own CPU time, the machine's."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A contender failed, or the machine lacks what a table needs; one sentence."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended well: `cpu` and `machine` are seconds of processor time."""

    seconds: float
    cpu: float
    machine: float
    stdout: str


def machine_busy() -> float:
    """Return the seconds that all processors together have been busy since boot."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def run(argv: Sequence[str], *, timeout: float = 900) -> Finished:
    """Run one command to its end and return what it cost. Raises BenchError if it fails.

    CPU time comes from wait4, so it is that of this very command and of its children.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy = machine_busy()
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, env=_environment()
        )
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        busy = machine_busy() - busy
        # The pid is reaped: without this, Popen would wait for the next process of that number.
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        stderr = err.read().decode(errors="replace")
    if process.returncode:
        raise BenchError(_failure(argv, process.returncode, stderr or stdout, seconds >= timeout))
    return Finished(seconds, usage.ru_utime + usage.ru_stime, busy, stdout)


def _environment() -> dict[str, str]:
    """Return our environment: messages in English, nothing that changes what is measured."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**keep, "LC_ALL": "C"}


def _failure(argv: Sequence[str], code: int, text: str, late: bool) -> str:
    how = f"ended with exit code {code}"
    if late:
        how = "took too long and was stopped"
    elif code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
    lines = [line for line in text.splitlines() if line.strip()]
    said = f": {lines[-1].strip()[:200]}" if lines else ""
    words = " ".join(argv[:3]) if argv[0].endswith("python") else argv[0]
    return f"{Path(words).name} {how}{said}"


def quiet(argv: Sequence[str]) -> str:
    """Run a helper command that is not measured; return what it printed. Raises BenchError."""
    try:
        done = subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=300, env=_environment()
        )
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(_failure(argv, error.returncode, error.stderr, late=False)) from None
    return done.stdout
