"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "dmcopy", max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # no verdict hangs on how fast the machine is
settings.load_profile("dmcopy")


def pytest_configure() -> None:
    """Take SIGINT as in the foreground, and hand that down to the commands that tests start.

    A shell has a job in the background ignore SIGINT, and each of its children.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
