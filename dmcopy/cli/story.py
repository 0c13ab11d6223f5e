"""Telling what a demonstration does, and checking every word: in colour on a terminal, else plain.

A claim that does not hold is shown as such, and the story then ends with exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from dmcopy.cli.output import emit_table
from dmcopy.cli.shown import drawing
from dmcopy.errors import ExitCode


class Story:
    """Titles, facts and claims on stdout."""

    def __init__(self) -> None:
        self._claims = 0
        self._false = 0
        self._console = _console() if sys.stdout.isatty() else None

    def title(self, text: str) -> None:
        if self._console is None:
            print(f"\n== {text}")
        else:
            self._console.print()
            self._console.rule(f"[bold cyan]{text}", align="left", style="cyan")

    def say(self, text: str) -> None:
        if self._console is None:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False, highlight=False)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show facts as a table."""
        emit_table(headers, rows)

    def claim(self, text: str, holds: bool) -> None:
        """Say something that must be true, and whether it is."""
        self._claims += 1
        self._false += not holds
        if self._console is None:
            print(f"  {'ok' if holds else 'NOT SO'}: {text}", flush=True)
            return
        from rich.text import Text

        mark = Text("  ✓ ", "bold green") if holds else Text("  ✗ NOT SO: ", "bold red")
        self._console.print(mark + Text(text))

    def end(self, seconds: float) -> ExitCode:
        """Sum up, and return the exit code."""
        held = self._claims - self._false
        if self._console is None:
            print(f"\n{held} of {self._claims} claims hold, {seconds:.1f} s")
        else:
            colour = "green" if held == self._claims else "red"
            self._console.print()
            self._console.print(
                f"[bold {colour}]{held} of {self._claims} claims hold[/], {seconds:.1f} s",
                highlight=False,
            )
        return ExitCode.FAILED if self._false else ExitCode.OK


def _console() -> Any:
    from rich.console import Console

    return Console(file=drawing(sys.stdout), highlight=False)
