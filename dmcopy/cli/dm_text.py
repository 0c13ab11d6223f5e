"""dmsetup's own text of userspace devices, which dmsetup cannot be asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from dmcopy import __version__
from dmcopy.block import sysfs
from dmcopy.block.devno import is_devno, parse_devno
from dmcopy.cli.output import printable
from dmcopy.errors import UsageError
from dmcopy.mapper import tree
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.names import mangle
from dmcopy.mapper.served import ServedMapper

_SHORT: Final = {"-o": "options", "-O": "sort", "-v": "verbose", "-c": "columns", "-C": "columns"}
_VALUES: Final = {"options", "sort", "separator", "target", "uuid", "major", "minor", "select"}
_FIELDS: Final = "name,major,minor,attr,open,segments,events,uuid"
DRIVER: Final = "4.47.0"
"""The version of the driver whose rules the userspace engine's are: Linux 6.1's."""


class Text:
    """What dmsetup prints for `verb` and its `words`, of devices by name; all of them if none."""

    def __init__(self, mapper: ServedMapper, words: Sequence[str], names: Sequence[str]) -> None:
        self._mapper = mapper
        self._verb = words[0]
        self._options = _parse(words[1:])
        self._all = not names
        self._names = list(names) or [info.name for info in mapper.ls()]

    def print(self) -> None:
        """Print it."""
        for line in _VERBS[self._verb](self):
            print(line)

    def _has(self, option: str) -> bool:
        return option in self._options

    def _ls(self) -> Iterator[str]:
        if self._has("tree"):
            yield from tree.draw(tree.tree(tree.with_deps(self._mapper)))
        else:
            how = self._options.get("options") or "devno"
            for info in self._mapper.ls():
                if self._lines(info.name, self._mapper.table(info.name)) or not self._has("target"):
                    yield f"{printable(info.name)}\t({_shown(info, how)})"
        if not self._mapper.ls():
            yield "No devices found"

    def _status(self) -> Iterator[str]:
        for name in self._names:
            lines = self._lines(name, self._mapper.status(name))
            yield from self._of(name, [(line, line.target, str(line.status)) for line in lines])

    def _table(self) -> Iterator[str]:
        if self._has("concise"):
            yield from self._concise()
            return
        for name in self._names:
            lines = self._lines(name, self._mapper.table(name, inactive=self._has("inactive")))
            yield from self._of(name, [(one, one.target_name, str(one.target)) for one in lines])

    def _lines(self, name: str, lines: object) -> list:  # type: ignore[type-arg]
        del name
        wanted = self._options.get("target")
        return [
            line
            for line in lines  # type: ignore[attr-defined]
            if wanted in (None, getattr(line, "target_name", None) or line.target)
        ]

    def _of(self, name: str, lines: list) -> Iterator[str]:  # type: ignore[type-arg]
        if self._has("verbose"):
            yield from self._block(self._mapper.info(name))
        head = f"{printable(name)}: " if self._all else ""
        for line, target, words in lines:
            yield printable(f"{head}{line.start} {line.length} {target} {words}")
        if not lines and not self._has("target"):
            yield head
        if self._has("verbose"):
            yield ""

    def _concise(self) -> Iterator[str]:
        devices = []
        for name in self._names:
            info, lines = self._mapper.info(name), self._mapper.table(name).lines
            mode = "ro" if info.readonly else "rw"
            minor = "" if info.number is None else str(info.number[1])
            devices.append(",".join([name, info.uuid, minor, mode, *map(str, lines)]))
        yield printable(";".join(devices))

    def _deps(self) -> Iterator[str]:
        how = self._options.get("options") or "devno"
        for name in self._names:
            words = self._mapper.deps(name)
            found = "".join(f" ({self._dependency(word, how)})" for word in words)
            head = f"{printable(name)}: " if self._all else ""
            yield f"{head}{len(words)} dependencies\t:{found}"

    def _dependency(self, word: str, how: str) -> str:
        for info in self._mapper.ls():
            if self._mapper.path(info.name) == word:
                return _shown(info, how).replace(":", ", ")
        if how == "devno" or not is_devno(word):
            return printable(word.replace(":", ", ") if is_devno(word) else word)
        return sysfs.name_of(parse_devno(word))

    def _targets(self) -> Iterator[str]:
        for name, version in self._mapper.targets().items():
            yield f"{name:<16} v{version}"

    def _version(self) -> Iterator[str]:
        yield f"Library version:   1.02.185 (dmcopy {__version__})"
        yield f"Driver version:    {DRIVER}"

    def _info(self) -> Iterator[str]:
        infos = [self._mapper.info(name) for name in self._names]
        if self._has("columns"):
            yield from _columns(infos, self._options)
            return
        for info in infos:
            yield from self._block(info)
            yield ""
        if not infos:
            yield "No devices found"

    def _block(self, info: DmInfo) -> Iterator[str]:
        tables = " & ".join(["LIVE"] * info.live + ["INACTIVE"] * info.inactive) or "None"
        state = "SUSPENDED" if info.suspended else "ACTIVE"
        major, minor = info.number or (0, 0)
        yield f"Name:              {printable(info.name)}"
        yield f"State:             {state}{' (READ-ONLY)' * info.readonly}"
        yield "Read Ahead:        256"
        yield f"Tables present:    {tables}"
        yield f"Open count:        {info.open_count}"
        yield f"Event number:      {info.events}"
        yield f"Major, minor:      {major}, {minor}"
        yield f"Number of targets: {info.segments}"
        if info.uuid:
            yield f"UUID: {printable(info.uuid)}"


_VERBS: Final = {
    "ls": Text._ls,
    "info": Text._info,
    "status": Text._status,
    "table": Text._table,
    "deps": Text._deps,
    "targets": Text._targets,
    "version": Text._version,
}


def _shown(info: DmInfo, how: str) -> str:
    """Return a device as -o has it."""
    if how == "devname":
        return printable(info.name)
    return sysfs.name_of(info.number or (0, 0)) if how == "blkdevname" else info.devno or "0:0"


def _parse(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name = _SHORT.get(word, word.lstrip("-"))
        found[name] = next(rest, "") if name in _VALUES else ""
    return found


_COLUMNS: Final[dict[str, tuple[str, bool, Callable[[DmInfo], object]]]] = {
    "name": ("Name", False, lambda info: printable(info.name)),
    "mangled_name": ("MangledName", False, lambda info: mangle(info.name)),
    "unmangled_name": ("UnmangledName", False, lambda info: printable(info.name)),
    "uuid": ("UUID", False, lambda info: printable(info.uuid)),
    "mangled_uuid": ("MangledUUID", False, lambda info: mangle(info.uuid)),
    "major": ("Maj", True, lambda info: (info.number or (0, 0))[0]),
    "minor": ("Min", True, lambda info: (info.number or (0, 0))[1]),
    "devno": ("DevNo", False, lambda info: info.devno),
    "blkdevname": ("BlkDevName", False, lambda info: _shown(info, "blkdevname")),
    "attr": ("Stat", False, lambda info: _attributes(info)),
    "tables_loaded": (
        *("Tables", False),
        lambda info: (("None", "Inactive"), ("Live", "Both"))[info.live][info.inactive],
    ),
    "suspended": ("Suspended", False, lambda info: ("Active", "Suspended")[info.suspended]),
    "readonly": ("Read-only", False, lambda info: ("Writeable", "Read-only")[info.readonly]),
    "open": ("Open", True, lambda info: info.open_count),
    "segments": ("Targ", True, lambda info: info.segments),
    "events": ("Event", True, lambda info: info.events),
    "read_ahead": ("RAhead", True, lambda _: 256),
    "device_count": ("#Devs", True, lambda info: len(info.deps)),
}


def _attributes(info: DmInfo) -> str:
    marks = ((info.live, "L-"), (info.inactive, "I-"), (info.suspended, "s-"))
    return "".join(pair[not on] for on, pair in marks) + ("r" if info.readonly else "w")


def _columns(infos: list[DmInfo], options: dict[str, str]) -> Iterator[str]:
    """Yield the lines of `dmsetup info -c`."""
    fields = (options.get("options") or _FIELDS).split(",")
    if fields[0].startswith("+"):
        fields = [*_FIELDS.split(","), fields[0][1:], *fields[1:]]
    odd = next((field for field in fields if field not in _COLUMNS), None)
    if odd is not None:
        raise UsageError(f"there is no field {odd!r}: there are {', '.join(_COLUMNS)}")
    columns = [_COLUMNS[field] for field in fields]
    rows = [[str(value(info)) for _, _, value in columns] for info in infos]
    for key in reversed([word for word in options.get("sort", "").split(",") if word]):
        backwards, name = key.startswith("-"), key.lstrip("+-")
        if name not in _COLUMNS:
            raise UsageError(f"there is no field {name!r} to sort by")
        value = _COLUMNS[name][2]
        order = sorted(range(len(infos)), key=lambda at: value(infos[at]), reverse=backwards)  # type: ignore[arg-type,return-value]
        infos, rows = [infos[at] for at in order], [rows[at] for at in order]
    if "nameprefixes" in options:
        quote = "" if "unquoted" in options else "'"
        for row in rows:
            pairs = zip(fields, row, strict=True)
            words = (f"DM_{name.upper()}={quote}{word}{quote}" for name, word in pairs)
            yield options.get("separator", " ").join(words)
        return
    if "noheadings" not in options and rows:
        rows.insert(0, [heading for heading, *_ in columns])
    if not rows and "noheadings" not in options:
        yield "No devices found"
    if "separator" in options:
        yield from (options["separator"].join(row) for row in rows)
        return
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, columns, strict=True)
        yield " ".join(
            word.rjust(width) if right else word.ljust(width)
            for word, width, (_, right, _) in cells
        )
