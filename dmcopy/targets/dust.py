"""dust: blocks that cannot be read until they are written (drivers/md/dm-dust.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from dmcopy import table as lines
from dmcopy.io.request import Op
from dmcopy.table import TableLine
from dmcopy.targets.base import KILL, REMAPPED, Bio, Host, Map, Target, TargetError, register
from dmcopy.units import SECTOR_SHIFT

MAX_FAILURES = 255


@register
class Dust(Target):
    """`dust <device> <offset> <block_size>`, the block size in bytes.

    Messages fill the list of bad blocks and enable it. Blocks are those of the device below,
    whatever the offset. A flush touches no block; the kernel takes it for a write to the first.
    """

    value: lines.Dust
    name: ClassVar[str] = "dust"
    version: ClassVar = (1, 0, 0)
    flush_bios = 1
    discard_bios = 1
    maps_ranges = True

    def __init__(self, line: TableLine, host: Host) -> None:
        super().__init__(line, host)
        self._device = host.open(self.value.device)
        self._shift = self.value.offset - self.begin
        self.max_io_len = self.value.block_size >> SECTOR_SHIFT
        self._enabled = False
        self._quiet = False
        self._bad: dict[int, int] = {}
        """Bad blocks, and how many writes to each will fail."""
        host.use(self._device, self.value.offset, self.length)

    def map(self, bio: Bio) -> Map:
        """Fail the bio, or move it to the device below."""
        bio.device = self._device
        if bio.op == Op.FLUSH:
            return REMAPPED
        bio.sector += self._shift
        block = bio.sector // self.max_io_len
        if not self._enabled or block not in self._bad:
            return REMAPPED
        if bio.op == Op.READ:
            return KILL
        if self._bad[block]:
            self._bad[block] -= 1
            return KILL
        del self._bad[block]
        return REMAPPED

    def status(self) -> str:
        """Return the device, whether the list is in use, and whether the kernel would log."""
        mode = "fail_read_on_bad_block" if self._enabled else "bypass"
        return f"{self.host.label(self._device)} {mode} {'quiet' if self._quiet else 'verbose'}"

    def message(self, words: tuple[str, ...]) -> str:
        """Change the list of bad blocks, look at it, enable or disable it."""
        word = words[0].lower()
        if len(words) == 1:
            plain: dict[str, Callable[[], str]] = {
                "enable": lambda: self._enable(True),
                "disable": lambda: self._enable(False),
                "quiet": self._toggle_quiet,
                "countbadblocks": lambda: f"countbadblocks: {len(self._bad)} badblock(s) found",
                "listbadblocks": self._list,
                "clearbadblocks": self._clear,
            }
            if word in plain:
                return plain[word]()
            if word in ("addbadblock", "removebadblock", "queryblock"):
                raise TargetError(f"{words[0]} requires an additional argument")
        elif len(words) == 2 and word == "removebadblock":
            return self._remove(self._block(words[1]))
        elif len(words) == 2 and word == "queryblock":
            block = self._block(words[1])
            found = "found" if block in self._bad else "not found"
            return f"dust_query_block: block {block} {found} in badblocklist"
        elif len(words) in (2, 3) and word == "addbadblock":
            failures = _number(words[2]) if len(words) == 3 else 0
            if failures > MAX_FAILURES:
                raise TargetError("selected write fail count out of range")
            return self._add(self._block(words[1]), failures)
        elif len(words) > 3:
            raise TargetError(f"invalid number of arguments '{len(words)}'")
        raise TargetError(f"unrecognized message '{words[0]}' received")

    def _block(self, word: str) -> int:
        block = _number(word)
        if block > self._device.sectors // self.max_io_len:
            raise TargetError("selected block value out of range")
        return block

    def _add(self, block: int, failures: int) -> str:
        if block in self._bad:
            raise TargetError(f"block {block} already in badblocklist")
        self._bad[block] = failures
        return ""

    def _remove(self, block: int) -> str:
        if block not in self._bad:
            raise TargetError(f"block {block} not found in badblocklist")
        del self._bad[block]
        return ""

    def _list(self) -> str:
        return "\n".join(map(str, sorted(self._bad))) or "No blocks in badblocklist"

    def _clear(self) -> str:
        had_any, self._bad = bool(self._bad), {}
        return f"dust_clear_badblocks: {'badblocks cleared' if had_any else 'no badblocks found'}"

    def _enable(self, enabled: bool) -> str:
        self._enabled = enabled
        return ""

    def _toggle_quiet(self) -> str:
        self._quiet = not self._quiet
        return ""


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit()) or len(word.lstrip("0")) > len(str(1 << 64)):
        raise TargetError(f"'{word}' is no number")
    return int(word)
