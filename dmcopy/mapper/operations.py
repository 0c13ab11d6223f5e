"""Operations on mapped devices as words, in the manner of qemu-io: `read 0 8`, `verify 0 8 0x5a`.

`dmcopy.mapper.run` runs them, and reports the same on both engines.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from dmcopy.errors import DeadlineError, MismatchError, UsageError
from dmcopy.mapper.operation import Operation, Result
from dmcopy.table.words import join, split
from dmcopy.units import SECTOR_SHIFT, SECTOR_SIZE, parse_sectors, quoted

if TYPE_CHECKING:
    from dmcopy.mapper.run import Run

_PREFIX: Final = re.compile(r"(\S+):\s+")
_HEAD_BYTES: Final = 8
_DIGEST_LETTERS: Final = 16
_POLL_SECONDS: Final = 0.05


def parse(text: str) -> Operation:
    """Return the operation of `[NAME: ]VERB WORD...`. Raises UsageError."""
    found = _PREFIX.match(text.strip())
    device, rest = (found[1], text.strip()[found.end() :]) if found else ("", text.strip())
    words = split(rest)
    if not words:
        raise UsageError(f"{quoted(text)} is no operation: write one such as 'read 0 8'")
    verb, *arguments = words
    if verb not in VERBS:
        raise UsageError(f"{verb!r} is not an operation; known: {', '.join(VERBS)}")
    form = VERBS[verb].form
    least = sum(1 for word in form.split() if not word.startswith("["))
    most = None if form.endswith("...]") else len(form.split())
    if len(arguments) < least or (most is not None and len(arguments) > most):
        raise UsageError(f"{quoted(text)}: write it as {f'{verb} {form}'.strip()!r}")
    return Operation(device, " ".join(rest.split()), VERBS[verb].run, tuple(arguments))


def pattern(word: str, sector: int, count: int) -> bytes:
    """Return the content that `word` stands for: a byte, as in 90 or 0x5a, or `seq[:SEED]`.

    `seq` is different in every sector, so that one at a wrong place is seen. Raises UsageError.
    """
    kind, colon, seed = word.partition(":")
    if kind == "seq" and bool(colon) == bool(seed):
        line = f"{seed or 'seq'} {{:>16}}\n"
        return b"".join(_sector(line.format(number)) for number in range(sector, sector + count))
    with contextlib.suppress(ValueError):
        return bytes([int(word, 0)]) * (count << SECTOR_SHIFT)
    raise UsageError(f"{quoted(word)} is not a pattern: write a byte (0x5a), seq, or seq:SEED")


def _sector(line: str) -> bytes:
    text = line.encode()
    return (text * (SECTOR_SIZE // len(text) + 1))[:SECTOR_SIZE]


@dataclass(frozen=True, slots=True)
class _Verb:
    form: str
    help: str
    run: Callable[..., Result]


def _read(run: Run, name: str, sector: str, count: str) -> Result:
    import hashlib

    data = run.opened(name).read(*run.place(name, sector, count))
    digest, head = hashlib.sha256(data).hexdigest(), data[:_HEAD_BYTES].hex(" ")
    line = f"sha256 {digest[:_DIGEST_LETTERS]}, {head} ..."
    return (line,), {"sha256": digest, "head": head}


def _write(run: Run, name: str, sector: str, count: str, word: str) -> Result:
    start, length = run.place(name, sector, count)
    run.opened(name, write=True).write(start, pattern(word, start, length))
    return (), {}


def _verify(run: Run, name: str, sector: str, count: str, word: str) -> Result:
    start, length = run.place(name, sector, count)
    expected = pattern(word, start, length)
    data = run.opened(name).read(start, length)
    if data == expected:
        return (), {}
    pairs = enumerate(zip(data, expected, strict=True))
    at = next(index for index, (found, wanted) in pairs if found != wanted)
    where = f"sector {start + (at >> SECTOR_SHIFT)}, byte {at % SECTOR_SIZE}"
    raise MismatchError(f"differs at {where}: 0x{data[at]:02x} instead of 0x{expected[at]:02x}")


def _flush(run: Run, name: str) -> Result:
    run.opened(name).flush()
    return (), {}


def _discard(run: Run, name: str, sector: str, count: str) -> Result:
    run.opened(name, write=True).discard(*run.place(name, sector, count))
    return (), {}


def _status(run: Run, name: str) -> Result:
    found = run.mapper.status(name)
    named = (replace(line, status=line.status.with_devices(run.label)) for line in found)
    lines = tuple(str(line).rstrip() for line in named)
    return lines, {"status": list(lines)}


def _table(run: Run, name: str) -> Result:
    lines = tuple(map(str, run.named(run.mapper.table(name))))
    return lines, {"table": list(lines)}


def _message(run: Run, name: str, sector: str, *words: str) -> Result:
    answer = run.mapper.message(name, *words, sector=parse_sectors(sector))
    return tuple(answer.splitlines()), {"answer": answer}


def _load(run: Run, name: str, *words: str) -> Result:
    run.load(name, join(words))
    return (), {}


def _suspend(run: Run, name: str, how: str = "") -> Result:
    if how not in ("", "noflush"):
        raise UsageError(f"{how!r}: write 'suspend' or 'suspend noflush'")
    run.suspend(name, flush=not how)
    return (), {}


def _resume(run: Run, name: str) -> Result:
    run.resume(name)
    return (), {}


def _sleep(run: Run, name: str, seconds: str) -> Result:
    del name
    run.mapper.sleep(_seconds(seconds))
    return (), {}


def _until(run: Run, name: str, word: str, seconds: str = "30") -> Result:
    deadline = time.monotonic() + _seconds(seconds)
    while not any(word in str(line).split() for line in run.mapper.status(name)):
        if time.monotonic() > deadline:
            raise DeadlineError(f"not within {seconds} s")
        run.mapper.sleep(_POLL_SECONDS)
    return (), {}


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        raise UsageError(f"{quoted(text)} is not a number of seconds")
    return float(text)


VERBS: Final = {
    "read": _Verb("SECTOR COUNT", "print the digest and the first bytes", _read),
    "write": _Verb("SECTOR COUNT PATTERN", "PATTERN: a byte, seq or seq:SEED", _write),
    "verify": _Verb("SECTOR COUNT PATTERN", "read, and compare", _verify),
    "flush": _Verb("", "make what was written durable", _flush),
    "discard": _Verb("SECTOR COUNT", "give up the content", _discard),
    "status": _Verb("", "as dmsetup prints it", _status),
    "table": _Verb("", "as dmsetup prints it, with the names that were given", _table),
    "message": _Verb("SECTOR WORD [WORD...]", "send words to the target at SECTOR", _message),
    "load": _Verb("START LENGTH TARGET [WORD...]", "a table, which resume makes active", _load),
    "suspend": _Verb("[noflush]", "hold new I/O", _suspend),
    "resume": _Verb("", "let I/O continue", _resume),
    "until": _Verb("WORD [SECONDS]", "wait until the status has WORD", _until),
    "sleep": _Verb("SECONDS", "let time pass", _sleep),
}


def help_text() -> str:
    """Return a line about each operation."""
    rows = [(f"{verb} {one.form}".strip(), one.help) for verb, one in VERBS.items()]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)
