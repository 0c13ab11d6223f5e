r"""Text that is safe on a terminal: a name, a label or a guest's words may hold escape sequences.

`Shown` is what sys.stdout and sys.stderr are in a command, so that no message has to think of it:
whatever is printed, of control characters only newlines and tabs get out, and what the locale
cannot write is written as \xe9, too. What moves the cursor or colours text asks for `drawing`.
"""

from __future__ import annotations

import io
import re
from typing import IO, Any, Final

_ODD: Final = re.compile(r"[^\n\t -~]+")
_ENDS: Final = 400


def printable(text: str) -> str:
    r"""Return text with what is not printable as \x1b; that is also a newline or tab."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shown(text: str) -> str:
    """Return lines of text with what is not printable in them escaped."""
    return _ODD.sub(lambda match: printable(match[0]), text)


def brief(text: str) -> str:
    """Return a line without its middle where a word of it must be very long: its ends say it."""
    left_out = len(text) - 2 * _ENDS
    if left_out <= _ENDS:
        return text
    return f"{text[:_ENDS]}… ({left_out} characters are left out) …{text[-_ENDS:]}"


class Shown(io.TextIOWrapper):
    """A text stream for people and programs, to which nothing but printable text is written."""

    def __init__(self, buffer: Any, **options: Any) -> None:
        super().__init__(buffer, errors="backslashreplace", **options)

    def write(self, text: str) -> int:
        """Write text, escaped; return how much of `text` that was: all."""
        self.draw(shown(text))
        return len(text)

    def draw(self, text: str) -> int:
        return super().write(text)


class _Drawing:
    """A `Shown` for what draws: rich."""

    def __init__(self, stream: Shown) -> None:
        self._stream = stream
        self.write = stream.draw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def drawing(stream: IO[str]) -> IO[str]:
    """Return the stream for a program that draws on a terminal and escapes names itself."""
    return _Drawing(stream) if isinstance(stream, Shown) else stream  # type: ignore[return-value]
