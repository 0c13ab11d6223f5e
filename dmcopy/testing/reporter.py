"""In a guest: tells the host's pytest of each result as it happens, a line of JSON each."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any, Final

import pytest

MARK: Final = "dmcopy-report "
WARNING: Final = "Warning"

# pytest captures descriptor 1 before it configures any plugin, and later than it imports this one.
_OUT: Final = os.dup(1)


class Reporter:
    """Writes reports of tests, errors of collection and warnings to the real stdout."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(report)

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
