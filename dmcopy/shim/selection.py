"""Reports by `info -c`, and verbs for the devices that -S selects; see dmreport(7)."""

from __future__ import annotations

import re

from dmcopy.shim.report import FIELDS, Field, Report, ReportError, Row, help_lines
from dmcopy.shim.words import strtoull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcopy.shim.call import Call

    Test = Callable[[Row], bool]

_TOKEN = re.compile(r"\s*(?:(&&|\|\||[,#()!])|([A-Za-z_]\w*)\s*(!=|!~|=~|>=|<=|=|>|<)\s*)")
_VALUE = re.compile(r'"((?:\\.|[^"])*)"|\'([^\']*)\'|((?:\\.|[^\s,#()&|])*)')


def run(call: Call, verb: Callable[[Call, list[str]], bool], operands: list[str]) -> bool:
    """Print a report, or run a verb for each device that is selected."""
    from dmcopy.shim import show

    reports = verb is show.info
    text = call.words.value("select")
    if "help" in (text, call.words.value("options") if reports else None):
        call.note("\n".join(help_lines(text == "help")))
        return True
    try:
        report = Report(call) if reports else None
        test = parse(text) if text is not None else None
    except ReportError as error:
        for line in str(error).splitlines():
            call.note(line)
        return False
    chosen, found = _chosen(call, operands)
    if report is None:
        call.multiple = True
        done = [verb(call, [row.info.name]) for row in chosen if test is None or test(row)]
        return all(done)  # of each, whatever becomes of another
    times = call.words.number("count") or 1
    for turn in range(times):
        if turn:
            call.say("")
            call.sleep(call.words.number("interval") or 1)
            chosen, _ = _chosen(call, operands)
        for line in report.lines(chosen, test):
            call.say(line)
    if not chosen and not operands and not call.addressed:
        call.say(show.NONE)
    return found or call.fail("Command failed.")


def _chosen(call: Call, operands: list[str]) -> tuple[list[Row], bool]:
    """Return the devices that are named, or all, up to one that is not there."""
    infos = call.devices.infos()
    if not operands and not call.addressed:
        return [Row(info, infos) for info in infos], True
    rows: list[Row] = []
    words: list[str | None] = [*operands]
    for word in words or [None]:
        info = call.lookup(word)
        if info is None:
            call.note("Device does not exist.")
            return rows, False
        rows.append(Row(info, infos))
    return rows, True


def parse(text: str) -> Test:
    """Return whether a row matches, as a selection says. Raises ReportError."""
    parser = _Parser(text)
    test = parser.either()
    if parser.rest.strip():
        raise parser.error()
    return test


class _Parser:
    """What is left of a selection; or binds less than and, which binds less than not."""

    def __init__(self, text: str) -> None:
        self.rest = text

    def either(self) -> Test:
        tests = [self.all()]
        while self._take("||", "#"):
            tests.append(self.all())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def all(self) -> Test:
        tests = [self.one()]
        while self._take("&&", ","):
            tests.append(self.one())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def one(self) -> Test:
        if self._take("!"):
            inner = self.one()
            return lambda row: not inner(row)
        if self._take("("):
            inner = self.either()
            if not self._take(")"):
                raise self.error()
            return inner
        return self._comparison()

    def _take(self, *words: str) -> bool:
        found = _TOKEN.match(self.rest)
        if found and found[1] in words:
            self.rest = self.rest[found.end() :]
            return True
        return False

    def _comparison(self) -> Test:
        before = self.rest
        found = _TOKEN.match(self.rest)
        if not found or not found[2]:
            raise self.error()
        field = _field(found[2])
        if field is None:
            raise ReportError(
                "\n".join([*help_lines(True), f"Unrecognised selection field: {found[2]}",
                           self._syntax(before), _HINT])
            )  # fmt: skip
        value = _VALUE.match(self.rest, found.end())
        assert value is not None
        self.rest = self.rest[value.end() :]
        quoted = value[1] if value[1] is not None else value[2]
        word = re.sub(r"\\(.)", r"\1", value[3] or "") if quoted is None else quoted
        if field.is_number and not re.fullmatch(r"-?\d+", word):
            text = f"Failed to parse numeric value for selection field {field.name}."
            raise ReportError("\n".join([text, self._syntax(before), _HINT]))
        return _comparing(field, found[3], word)

    def error(self) -> ReportError:
        return ReportError(f"{self._syntax(self.rest)}\n{_HINT}")

    def _syntax(self, rest: str) -> str:
        return f"Selection syntax error at '{rest}'."


_HINT = "Use 'help' for selection to get more help."


def _field(name: str) -> Field | None:
    named = [field for field in FIELDS if field.name == name]
    return named[0] if named else None


def _comparing(field: Field, operator: str, word: str) -> Test:
    value = field.value
    if operator in ("=~", "!~"):
        try:
            pattern = re.compile(word)
        except re.error as error:
            raise ReportError(f"Failed to parse regex for selection: {error}.\n{_HINT}") from None
        wanted = operator == "=~"
        return lambda row: bool(pattern.search(str(value(row)))) is wanted
    right: object = word
    if field.is_number:
        right = strtoull(word.removeprefix("-")) * (-1 if word[0] == "-" else 1)
    compare: dict[str, Callable[[object, object], bool]] = {
        "=": lambda one, other: one == other,
        "!=": lambda one, other: one != other,
        ">": lambda one, other: one > other,  # type: ignore[operator]
        "<": lambda one, other: one < other,  # type: ignore[operator]
        ">=": lambda one, other: one >= other,  # type: ignore[operator]
        "<=": lambda one, other: one <= other,  # type: ignore[operator]
    }
    test = compare[operator]
    return lambda row: test(value(row), right)
