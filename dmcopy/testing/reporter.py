"""In a guest: runs the tests that the host asks for, and tells it of each result as it happens.

Both are lines of JSON: requests on the standard input, reports on the standard output.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

MARK: Final = "dmcopy-report "
START: Final = "Start"
UNKNOWN: Final = "Unknown"
WARNING: Final = "Warning"
POWER_CUT: Final = "PowerCut"
HEADER: Final = "Header"
FILES: Final = "Files"
FILES_BYTES: Final = 8 << 20
"""The most of a failed test's own folder that is sent to the host."""

# pytest captures the descriptors before it configures any plugin, and later than it imports this.
_IN: Final = os.dup(0)
_OUT: Final = os.dup(1)


class Reporter:
    """Takes requests, and writes reports of tests, errors of collection and warnings."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._first = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run what is asked for until the host asks no more."""
        if session.testsfailed:
            return None  # errors of collection: pytest ends with them
        items = {item.nodeid: item for item in session.items}
        # In an emulated guest this takes long, and would count for the first test's limit.
        importlib.import_module("dmcopy.testing.keeping")
        if any("dm_place" in getattr(item, "fixturenames", ()) for item in session.items):
            importlib.import_module("dmcopy.testing.kit.guest")
        for request in requests():
            nodeid = request["run"]
            item = items.get(nodeid)
            if item is None:
                self._send({"$report_type": UNKNOWN, "nodeid": nodeid})
                continue
            self._first = self._first or nodeid
            self._send({"$report_type": START, "nodeid": nodeid})
            following = items.get(request["next"])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return True

    def phase(self, nodeid: str) -> int:
        """Return how many power cuts a test has behind it."""
        return int(self._config.getoption("--vm-phase")) if nodeid == self._first else 0

    def cut_power(self, nodeid: str, seed: int | None) -> None:
        """Have the host cut the power: this never returns."""
        self._send({"$report_type": POWER_CUT, "nodeid": nodeid, "seed": seed})
        for _ in requests():  # no more come: it ends with the guest, or where the host has gone
            pass
        os._exit(1)

    def tell(self, text: str) -> None:
        """Tell the host of the machine on which tests run here."""
        self._send({"$report_type": HEADER, "text": text})

    def send_files(self, nodeid: str, folder: Path) -> None:
        """Send what a test has left in its folder to the host, up to `FILES_BYTES`."""
        found: dict[str, str] = {}
        room = FILES_BYTES
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not os.path.ismount(f"{parent}/{name}")]
            for path in (Path(parent, name) for name in sorted(names)):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= room:
                    room -= path.stat().st_size
                    data = base64.b64encode(path.read_bytes()).decode()
                    found[str(path.relative_to(folder))] = data
        if found:
            self._send({"$report_type": FILES, "nodeid": nodeid, "files": found})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Send away the plugin of hypothesis where no test has imported that.

        To say at the end that there is nothing to say it would, for ten seconds of a guest's.
        """
        manager = self._config.pluginmanager
        plugin = manager.getplugin("hypothesispytest")
        if plugin is not None and "hypothesis" not in sys.modules:
            manager.unregister(plugin)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, nodeid: str
    ) -> None:
        place = {"filename": warning_message.filename, "lineno": warning_message.lineno}
        text = str(warning_message.message)
        self._send({"$report_type": WARNING, "nodeid": nodeid, "text": text, **place})

    def _write(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        self._send(
            self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        )

    def _send(self, data: dict[str, Any]) -> None:
        line = f"\n{MARK}{json.dumps(data, default=repr)}\n".encode()
        while line:
            line = line[os.write(_OUT, line) :]


def requests() -> Iterator[dict[str, str]]:
    """Yield what the host asks for."""
    rest = b""
    while data := os.read(_IN, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        yield from map(json.loads, lines)


class Lines:
    """The host's end: cuts a stream into reports, and hands on everything else."""

    def __init__(self) -> None:
        self._rest = b""
        self.other = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the reports that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        reports = []
        for line in lines:
            if line.startswith(MARK.encode()):
                reports.append(json.loads(line[len(MARK) :]))
            elif line:
                self.other += line + b"\n"
        return reports
