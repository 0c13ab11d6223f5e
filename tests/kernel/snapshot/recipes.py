"""What most tests begin with."""

from __future__ import annotations

from .engines import Engine, pattern

LENGTH = 4096
"""Of the origin in most tests, in sectors."""


def fill_origin(engine: Engine) -> None:
    """Put something into the origin."""
    engine.poke("A", 0, pattern(1, LENGTH))


def take(engine: Engine, cow: str = "@B", store: str = "P", chunk: int = 8) -> None:
    """Make an origin `o` over disk A, filled, and its snapshot `s`."""
    fill_origin(engine)
    engine.create("o", f"0 {LENGTH} snapshot-origin @A")
    engine.create("s", f"0 {LENGTH} snapshot @A {cow} {store} {chunk}")
    pause(engine, "o")


def pause(engine: Engine, *names: str) -> None:
    """Suspend and resume."""
    for name in names:
        engine.mapper.suspend(name)
        engine.mapper.resume(name)


def drop(engine: Engine, *names: str) -> None:
    """Remove devices, the first one first."""
    for name in names:
        engine.remove(name)


def small(engine: Engine, sectors: int) -> None:
    """Make a device `cow` of the first sectors of disk B."""
    engine.create("cow", f"0 {sectors} linear @B 0")
