"""The servers of the bench, as far as nothing is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import servers
from tests.bench.export import parts
from tests.bench.process import BenchError


def test_a_server_that_ends_is_told_with_what_it_said(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "raise SystemExit('there is no disk')"]
    with (
        servers._running(words) as process,
        pytest.raises(BenchError, match="there is no disk"),
    ):
        servers._wait_for(tmp_path / "pid", process)


def test_a_server_that_is_not_installed_is_told() -> None:
    with pytest.raises(BenchError, match="is not installed"), servers._running(["no-such-server"]):
        pass


def test_a_device_is_served_with_our_own_command(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with servers.linear("nbd", disk, 1 << 20)(tmp_path) as served:
        assert served.target.startswith("nbd+unix:///bench-linear-")
        assert served.cpu() >= 0
    with pytest.raises(BenchError, match="has ended"):
        served.cpu()


def test_every_front_end_has_every_part() -> None:
    assert len(parts()) == 9
