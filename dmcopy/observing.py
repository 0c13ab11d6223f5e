"""Observers: callbacks that watch, and must not change the work, whatever they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

_P = ParamSpec("_P")


def log(error: BaseException) -> None:
    """Log what an observer has raised."""
    import logging  # costs a quarter of what a short command takes to start

    logging.getLogger("dmcopy").error("an observer raised, and is not called again", exc_info=error)


def shielded(
    observer: Callable[_P, object], report: Callable[[BaseException], object] = log
) -> Callable[_P, None]:
    """Return `observer` as something that never raises.

    What it raises is reported, and then it is not called again.
    """
    silent = False

    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        nonlocal silent
        if silent:
            return
        try:
            observer(*args, **kwargs)
        except Exception as error:
            silent = True
            report(error)

    return call
