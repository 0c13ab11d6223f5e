"""`dmsetup ls --tree`: how the devices stand on each other, as a picture."""

from __future__ import annotations

import os
import sys

from dmcopy.shim.devices import Info, block_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcopy.shim.call import Call

    Number = tuple[int, int]

_OPTIONS = (
    "device blkdevname nodevice status table active open uuid rw "
    "utf vt100 ascii inverted compact notrunc"
)
OPTIONS = _OPTIONS.split()
# Empty, branch, vertical, last; then the first and the only one on a line of a compact tree.
_ASCII = ("  ", "|-", "| ", "`-", "-+-", "---")
_UTF = ("  ", "├─", "│ ", "└─", "─┬─", "───")
_VT100 = ("  ", *(f"\033(0\017{word}\033(B" for word in ("tq", "x", "mq", "qwq", "qqq")))


def chosen(text: str) -> list[str] | None:
    """Return the whole names of options, which their beginnings stand for; None for others."""
    found = []
    for word in filter(None, text.split(",")):
        named = [option for option in OPTIONS if option.startswith(word)]
        if not named:
            return None
        found.append(named[0])
    return found


class Tree:
    """The devices, and what is under and above each."""

    def __init__(self, call: Call, options: list[str]) -> None:
        self.options = options
        self.call = call
        infos = call.devices.infos()
        self.by_number = {info.number: info for info in infos}
        below: dict[Number, list[Number]] = {info.number: info.deps for info in infos}
        above: dict[Number, list[Number]] = {}
        for number, deps in below.items():
            for dep in deps:
                above.setdefault(dep, []).append(number)
        everything = [*below, *(number for number in above if number not in below)]
        inverted = "inverted" in options
        self.children = above if inverted else below
        parents = below if inverted else above
        self.roots = [number for number in everything if not parents.get(number)]
        compact = "compact" in options and not {"active", "rw", "open", "uuid"} & set(options)
        self.compact = compact
        self.symbols = _symbols(options)

    def draw(self, number: Number, say: Callable[[str], object], lead: str, mark: str) -> None:
        """Draw a device and all that hangs on it. `lead`: what is before each further line."""
        _empty, branch, vertical, last, first, only = self.symbols
        label = self.label(number)
        children = [child for child in self.children.get(number, []) if self.label(child)]
        if self.compact and children:
            lead += " " * (len(label) + 1)
            for place, child in enumerate(children):
                more = place < len(children) - 1
                joint = lead + (branch if more else last)
                if not place:
                    joint = mark + label + (first if more else only)
                self.draw(child, say, lead + (vertical if more else "  "), joint)
            return
        say(mark + label)
        for place, child in enumerate(children):
            more = place < len(children) - 1
            joint = branch if more else last
            self.draw(child, say, f"{lead} {vertical if more else '  '}", f"{lead} {joint}")

    def label(self, number: Number) -> str:
        """Return how a device is shown."""
        info = self.by_number.get(number)
        words = [info.name] if info else [""]
        if "blkdevname" in self.options and (name := block_name(number)):
            words.append(f"<{name}>")
        if "nodevice" not in self.options:
            words.append(f"({number[0]}:{number[1]})")
        shown = " ".join(words) if info or words[1:] else ""
        facts = self._facts(info) if info else []
        return f"{shown} [{', '.join(facts)}]" if facts else shown

    def _facts(self, info: Info) -> list[str]:
        facts = {
            "active": "SUSPENDED" if info.suspended else "ACTIVE",
            "rw": "RO" if info.readonly else "RW",
            "open": str(info.opened),
            "uuid": info.uuid,
        }
        return [text for option, text in facts.items() if option in self.options]


def _symbols(options: list[str]) -> tuple[str, ...]:
    for option in reversed(options):
        if option in ("utf", "vt100", "ascii"):
            return {"utf": _UTF, "vt100": _VT100, "ascii": _ASCII}[option]
    return _UTF if sys.stdout.encoding.lower() == "utf-8" else _ASCII


def show(call: Call) -> bool:
    options = chosen(call.words.value("options") or "") or []
    tree = Tree(call, options)
    if not tree.by_number:
        call.say("No devices found")
    width = _width() if "notrunc" not in options else 0

    def say(line: str) -> None:
        call.say(line if not width or len(line) <= width else line[: width - 1] + "...")

    for number in tree.roots:
        tree.draw(number, say, "", "")
    return True


def _width() -> int:
    """Return how wide a line may be: 80 where there is no terminal (measured)."""
    try:
        return max(1, os.get_terminal_size(1).columns - 3)
    except OSError:
        return 80
