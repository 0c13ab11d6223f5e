"""`dmsetup info -c` and `splitname`: rows of chosen columns, sorted and selected.

Rules: dmsetup(8), dmreport(7), and measured with 1.02.185.
"""

from __future__ import annotations

from dmcopy.mangling import mangle
from dmcopy.shim.devices import Info, block_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcopy.shim.call import Call

    Value = str | int


class ReportError(Exception):
    """A report that cannot be made; the text is what dmsetup says of it, in lines."""


class Field:
    """A column: its name, heading, least width, whether it is a number, and its value of a row."""

    def __init__(
        self, name: str, heading: str, width: int, value: Callable[[Row], Value], *, kind: str
    ) -> None:
        self.name = name
        self.heading = heading
        self.width = width
        self.value = value
        self.kind, _, number = kind.partition(" ")
        self.is_number = bool(number)


class Row:
    """A device among all others."""

    def __init__(self, info: Info, infos: list[Info]) -> None:
        self.info = info
        self.others = {one.number: one for one in infos}

    def used(self) -> list[Info]:
        """Return the mapped devices under this one."""
        return [self.others[number] for number in self.info.deps if number in self.others]

    def using(self) -> list[Info]:
        """Return the mapped devices on this one."""
        return [one for one in self.others.values() if self.info.number in one.deps]

    def part(self, place: int) -> str:
        """Return a part of the name as LVM makes it: of the group, the volume, the layer."""
        return split_name(self.info.name)[place] if self.subsystem() == "LVM" else ""

    def subsystem(self) -> str:
        """Return what made the device, as its UUID says."""
        head, dash, _ = self.info.uuid.partition("-")
        return head if dash else ""


def split_name(name: str) -> tuple[str, str, str]:
    """Return the parts of a name of LVM's, in which a hyphen of a part's own is doubled."""
    parts = []
    for _ in range(3):  # what comes behind a fourth one is of no part, as for libdevmapper
        part, hyphen, name = name.replace("--", "\0").partition("-")
        part, name = part.replace("\0", "-"), name.replace("\0", "--")
        parts.append(part if name else part + hyphen)  # a hyphen at the end is a letter
    return parts[0], parts[1], parts[2]


def _devno(number: tuple[int, int]) -> str:
    return f"{number[0]}:{number[1]}"


def _tables(info: Info) -> str:
    if info.live:
        return "Both" if info.inactive else "Live"
    return "Inactive" if info.inactive else "None"


def _attr(info: Info) -> str:
    pairs = (info.live, "L"), (info.inactive, "I"), (info.suspended, "s")
    return "".join(letter if is_so else "-" for is_so, letter in pairs) + "wr"[info.readonly]


def _field(kind: str, name: str, heading: str, width: int, value: Callable[[Row], Value]) -> Field:
    return Field(name, heading, width, value, kind=kind)


FIELDS = [
    _field("name", "name", "Name", 16, lambda row: row.info.name),
    _field("name", "mangled_name", "MangledName", 16, lambda row: mangle(row.info.name)),
    _field("name", "unmangled_name", "UnmangledName", 16, lambda row: row.info.name),
    _field("name", "uuid", "UUID", 32, lambda row: row.info.uuid),
    _field("name", "mangled_uuid", "MangledUUID", 32, lambda row: mangle(row.info.uuid)),
    _field("name", "unmangled_uuid", "UnmangledUUID", 32, lambda row: row.info.uuid),
    _field("name number", "read_ahead", "RAhead", 6, lambda row: row.info.read_ahead),
    _field("info", "blkdevname", "BlkDevName", 16, lambda row: block_name(row.info.number)),
    _field("info", "attr", "Stat", 4, lambda row: _attr(row.info)),
    _field("info", "tables_loaded", "Tables", 6, lambda row: _tables(row.info)),
    _field("info", "suspended", "Suspended", 9,
           lambda row: "Suspended" if row.info.suspended else "Active"),
    _field("info", "readonly", "Read-only", 9,
           lambda row: "Read-only" if row.info.readonly else "Writeable"),
    _field("info", "devno", "DevNo", 5, lambda row: _devno(row.info.number)),
    _field("info number", "major", "Maj", 3, lambda row: row.info.major),
    _field("info number", "minor", "Min", 3, lambda row: row.info.minor),
    _field("info number", "open", "Open", 4, lambda row: row.info.opened),
    _field("info number", "segments", "Targ", 4, lambda row: row.info.segments),
    _field("info number", "events", "Event", 6, lambda row: row.info.events),
    _field("deps number", "device_count", "#Devs", 5, lambda row: len(row.info.deps)),
    _field("tree", "devs_used", "DevNamesUsed", 16,
           lambda row: ",".join(one.name for one in row.used())),
    _field("deps", "devnos_used", "DevNosUsed", 16,
           lambda row: ",".join(map(_devno, row.info.deps))),
    _field("deps", "blkdevs_used", "BlkDevNamesUsed", 16,
           lambda row: ",".join(map(block_name, row.info.deps))),
    _field("tree number", "device_ref_count", "#Refs", 5, lambda row: len(row.using())),
    _field("tree", "names_using_dev", "RefNames", 8,
           lambda row: ",".join(one.name for one in row.using())),
    _field("tree", "devnos_using_dev", "RefDevNos", 9,
           lambda row: ",".join(_devno(one.number) for one in row.using())),
    _field("splitname", "subsystem", "Subsys", 6, lambda row: row.subsystem()),
    _field("splitname", "vg_name", "VG", 4, lambda row: row.part(0)),
    _field("splitname", "lv_name", "LV", 4, lambda row: row.part(1)),
    _field("splitname", "lv_layer", "LVLayer", 7, lambda row: row.part(2)),
]  # fmt: skip
DEFAULT = "name,major,minor,attr,open,segments,events,uuid"
SPLITNAME = "vg_name,lv_name,lv_layer"


def fields(text: str) -> list[Field]:
    """Return the columns that a list names. Raises ReportError."""
    found: list[Field] = []
    for word in filter(None, text.split(",")):
        plain = word.replace("_", "")
        named = [one for one in (*FIELDS, SELECTED) if one.name.replace("_", "") == plain]
        group = word.removesuffix("_all") if word.endswith("_all") else word
        if not named and (word == "all" or word.endswith("_all")):
            named = [field for field in FIELDS if word == "all" or field.kind == group]
        if not named:
            raise ReportError("\n".join([*help_lines(False), f"Unrecognised field: {word}"]))
        found += named
    return found


SELECTED = Field("selected", "Selected", 8, lambda _: 0, kind="special number")
"""Whether a row matches, when all are shown; its value is the report's to say."""


def help_lines(typed: bool) -> list[str]:
    """Return the names of all columns, by kind; `typed`: with what a selection compares."""
    kinds: dict[str, list[Field]] = {}
    for field in FIELDS:
        kinds.setdefault(field.kind, []).append(field)
    lines = []
    for kind, found in kinds.items():
        lines += [f"{kind.capitalize()} fields", "-" * (len(kind) + 7)]
        lines += [] if typed else [f"  {kind + '_all':21} - All fields in this section."]
        for field in found:
            value = f" [{'number' if field.is_number else 'string'}]" if typed else ""
            lines.append(f"  {field.name:21} - {field.heading}{value}")
        lines.append(" ")
    return lines


class Report:
    """The rows of a report, in the way that the options of a call say."""

    def __init__(self, call: Call, default: str = DEFAULT) -> None:
        words = call.words
        text = words.value("options") or default
        if default == SPLITNAME and text == "all":
            text = "splitname_all"  # there are no others in that report
        self.columns = fields(f"{default},{text[1:]}" if text.startswith("+") else text)
        self.keys = [
            (fields(word.lstrip("+-"))[0], word.startswith("-"))
            for word in filter(None, (words.value("sort") or "").split(","))
        ]
        bare = "noheadings" in words
        self.separator = words.value("separator") or (":" if bare else " ")
        self.prefixed = "nameprefixes" in words
        self.as_rows = "rows" in words
        self.aligned = not (bare or self.prefixed or self.as_rows or "separator" in words)
        self.headings = not bare
        self.quote = "" if "unquoted" in words else "'"

    def lines(self, rows: list[Row], test: Callable[[Row], bool] | None = None) -> list[str]:
        """Return the lines of a report of the rows that match; of all with a column of that."""
        matches = test or (lambda _: True)
        if SELECTED not in self.columns:
            rows = [row for row in rows if matches(row)]
        for field, backwards in reversed(self.keys):
            rows = sorted(rows, key=field.value, reverse=backwards)
        if not rows:
            return []
        table = [[self._shown(field, row, matches) for field in self.columns] for row in rows]
        if self.headings:
            table.insert(0, [field.heading for field in self.columns])
        if self.aligned:
            table = self._padded(table)
        if self.as_rows:
            table = [list(column) for column in zip(*table, strict=True)]
        return [self.separator.join(cells) for cells in table]

    def _shown(self, field: Field, row: Row, matches: Callable[[Row], bool]) -> str:
        value = int(matches(row)) if field is SELECTED else field.value(row)
        if not self.prefixed:
            return str(value)
        return f"DM_{field.name.upper()}={self.quote}{value}{self.quote}"

    def _padded(self, table: list[list[str]]) -> list[list[str]]:
        widths = [
            max(field.width, *(len(cells[place]) for cells in table))
            for place, field in enumerate(self.columns)
        ]
        return [
            [
                cell.rjust(width) if field.is_number and index else cell.ljust(width)
                for cell, width, field in zip(cells, widths, self.columns, strict=True)
            ]
            for index, cells in enumerate(table)
        ]
