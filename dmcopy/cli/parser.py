"""An argument parser that says what a typo probably meant."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn

from dmcopy.errors import ExitCode


class Parser(argparse.ArgumentParser):
    """argparse's parser with examples kept as typed, whole option names, and suggestions."""

    def __init__(self, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Print one sentence and where the help is; exit 2."""
        hint = self._suggestion(message)
        print(f"{self.prog}: {message}{hint}; see '{self.prog} --help'", file=sys.stderr)
        sys.exit(ExitCode.USAGE)

    def _suggestion(self, message: str) -> str:
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            return _closest(choice[1], re.findall(r"'([^']*)'", choice[2]))
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            return _closest(unknown[1], list(self._option_string_actions))
        return ""


def _closest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
