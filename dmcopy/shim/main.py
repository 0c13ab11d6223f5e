"""The shim's `dmsetup`: reads the words, runs the verb for each device, ends as dmsetup does."""

from __future__ import annotations

import os
import signal
import sys

from dmcopy.shim import show, verbs
from dmcopy.shim.call import Call
from dmcopy.shim.devices import Refused
from dmcopy.shim.words import CommandLine, WordsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from dmcopy.shim.devices import Devices

    Verb = Callable[[Call, list[str]], bool]


_KINDS = ("devno", "blkdevname", "devname")


def _lazy(name: str) -> Verb:
    """Return a verb of `seldom` or `stats`, which is imported when it is called."""

    def verb(call: Call, words: list[str]) -> bool:
        if name == "stats":
            from dmcopy.shim.stats import stats

            return stats(call, words)
        from dmcopy.shim import seldom

        found: Verb = getattr(seldom, name)
        return found(call, words)

    return verb


# Name: the least and the most words behind it, whether it is done for each of them, and what it
# does. "s" has those that take --select, too.
VERBS: dict[str, tuple[int, int | None, str, Verb]] = {
    "help": (0, 0, "", _lazy("usage")),
    "create": (0, 2, "", verbs.create),
    "remove": (0, None, "s", verbs.remove),
    "remove_all": (0, 0, "", verbs.remove_all),
    "suspend": (0, None, "s", verbs.suspend),
    "resume": (0, None, "s", verbs.resume),
    "load": (0, 2, "", verbs.load),
    "clear": (0, None, "s", verbs.clear),
    "reload": (0, 2, "", verbs.load),
    "wipe_table": (0, None, "s", verbs.wipe_table),
    "rename": (1, 2, "", verbs.rename),
    "measure": (0, None, "s", _lazy("measure")),
    "message": (2, None, "", verbs.message),
    "ls": (0, 0, "", show.ls),
    "info": (0, None, "e", show.info),
    "deps": (0, None, "s", show.deps),
    "stats": (1, None, "", _lazy("stats")),
    "status": (0, None, "s", show.status),
    "table": (0, None, "s", show.table),
    "wait": (0, 2, "", verbs.wait),
    "mknodes": (0, None, "e", verbs.mknodes),
    "mangle": (0, None, "e", _lazy("mangle")),
    "udevcreatecookie": (0, 0, "", _lazy("udevcreatecookie")),
    "udevreleasecookie": (0, 1, "", _lazy("udevreleasecookie")),
    "udevflags": (1, 1, "", _lazy("udevflags")),
    "udevcomplete": (1, 1, "", _lazy("udevcomplete")),
    "udevcomplete_all": (0, 1, "", _lazy("udevcomplete_all")),
    "udevcookies": (0, 0, "", _lazy("udevcookies")),
    "target-version": (1, None, "e", show.target_version),
    "targets": (0, 0, "", show.targets),
    "version": (0, 0, "", show.version),
    "setgeometry": (5, 5, "", _lazy("setgeometry")),
    "splitname": (1, 2, "", _lazy("splitname")),
}


class _Terminal:
    """A terminal, which no control character of a name reaches: dmsetup itself writes them."""

    def __init__(self, stream: TextIO) -> None:
        self._write, self.flush, self.encoding = stream.write, stream.flush, stream.encoding

    def write(self, text: str) -> None:
        shown = (one if one.isprintable() or one in "\n\t" else ascii(one)[1:-1] for one in text)
        self._write("".join(shown))


def main() -> None:
    for number in (signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "r+")  # noqa: SIM115 - it was closed
        stream.reconfigure(errors="surrogateescape")
        setattr(sys, name, _Terminal(stream) if name != "stdin" and stream.isatty() else stream)
    from dmcopy.shim.served import ServedDevices

    code = run(sys.argv[1:], ServedDevices())
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"dmsetup: cannot write: {error.strerror}\n")
        code = 1
    os._exit(code)  # what is left to do takes as long as a verb


def run(argv: Sequence[str], devices: Devices) -> int:
    """Do what the words say; return the exit code."""
    try:
        words = CommandLine(list(argv))
    except WordsError as error:
        sys.stderr.write(f"{error}\nCouldn't process command line.\n")
        return 1
    call = Call(words, devices)
    if "help" in words or "version" in words:
        _lazy("usage")(call, []) if "help" in words else show.version(call, [])
        return 0
    if not words.operands:
        return _unusable(call, "")
    name, *operands = words.operands
    verb = VERBS.get(name)
    if verb is None:
        return _unusable(call, "Unknown command.")
    least, most, _, _ = verb
    if len(operands) < least or (most is not None and len(operands) > most):
        return _unusable(call, "Incorrect number of arguments.")
    if name == "splitname":
        words.counts["columns"] = 1
    if not _options_known(call):
        return 1
    try:
        return 0 if _each(call, verb, operands) else 1
    except Refused as error:
        call.note(f"dmcopy: {error}")
    call.note("Command failed.")
    return 1


def _each(call: Call, verb: tuple[int, int | None, str, Verb], operands: list[str]) -> bool:
    """Run a verb, for each of the words behind it if it is such a one, until one fails."""
    _, _, kind, function = verb
    reports = "columns" in call.words and function is show.info
    if reports or ("select" in call.words and kind == "s"):
        from dmcopy.shim import selection

        return selection.run(call, function, operands)
    call.multiple = bool(kind) and len(operands) != 1 and (bool(operands) or not call.addressed)
    turns = [operands[place:] for place in range(len(operands))] if kind else []
    for turn in turns or [operands]:
        if not function(call, turn):
            call.note("Command failed.")
            return False
    if call.said_concise:
        call.say("")
    return True


def _unusable(call: Call, text: str) -> int:
    if text:
        call.note(text)
    _lazy("usage")(call, [])
    return 1


def _options_known(call: Call) -> bool:
    """Return whether -o says what dmsetup knows; it is said if not."""
    text = call.words.value("options")
    if text is None or "columns" in call.words:
        return True
    if "tree" in call.words:
        from dmcopy.shim import tree

        if tree.chosen(text) is not None:
            return True
        call.note(f"Tree options not recognised: {text}.")
        return call.fail("Couldn't process command line.")
    for word in text.split(","):
        kinds = [kind for kind in _KINDS if kind.startswith(word)]
        if not kinds:
            call.note(f"Option not recognised: {word}.")
            return call.fail("Couldn't process command line.")
        call.name_kind = kinds[0]
    return True
