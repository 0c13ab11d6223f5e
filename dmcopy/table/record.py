"""Records: frozen dataclasses whose fields are the words of a line, in the order of the line.

A field says what kind of word it is, and the rule that the kernel has for it, so that reading,
writing, checking and finding the devices need no code of their own in most targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, Self

from dmcopy.table.words import TableError, Words, join, split

MAX32 = (1 << 32) - 1
MAX64 = (1 << 64) - 1


class FieldKind(Enum):
    """What a field stands for in the line."""

    WORD = auto()
    DEVICE = auto()
    NUMBER = auto()
    RATIO = auto()
    GROUP = auto()  # a count and that many words


class Ratio(NamedTuple):
    """Two numbers of a status line written `used/total`."""

    used: int
    total: int

    @property
    def percent(self) -> float:
        """`used` in percent of `total`; 100 where there is nothing to do."""
        return 100.0 * self.used / self.total if self.total else 100.0

    def __str__(self) -> str:
        return f"{self.used}/{self.total}"


@dataclass(frozen=True, slots=True)
class Spec:
    """A field's kind and the kernel's rule for it."""

    kind: FieldKind
    low: int = 0
    high: int = MAX64
    power: bool = False
    multiple: int = 1
    optional: bool = False  # may be absent: None
    dash: bool = False  # None is written as "-"
    choices: tuple[str, ...] = ()
    known: Mapping[str, int] | None = None  # feature words, and how many words follow each

    def take(self, words: Words, what: str) -> Any:
        """Take this field's value off the front of `words`."""
        if self.optional and not len(words):
            return None
        if self.dash and words.peek() == "-":
            words.word(what)
            return None
        if self.kind is FieldKind.NUMBER:
            return words.number(what)
        if self.kind is FieldKind.GROUP:
            return words.group(what)
        word = words.word(what)
        if self.kind is not FieldKind.RATIO:
            return word
        used, _, total = word.partition("/")
        return Ratio(words.as_number(what, used), words.as_number(what, total))

    def words(self, value: Any) -> list[str]:
        """Return the words that stand for `value`."""
        if value is None:
            return ["-"] if self.dash else []
        if self.kind is FieldKind.GROUP:
            return [str(len(value)), *value]
        return [str(value)]

    def check(self, target: str, what: str, value: Any) -> None:
        """Raise TableError when `value` breaks the rule."""
        if value is None:
            if not (self.optional or self.dash):
                raise TableError(target, what, None, "is missing")
        elif self.kind is FieldKind.NUMBER:
            self._check_number(target, what, value)
        elif self.kind is FieldKind.GROUP:
            self._check_group(target, what, value)
        elif self.kind is not FieldKind.RATIO:
            self._check_word(target, what, value)

    def _check_word(self, target: str, what: str, value: str) -> None:
        if not value or "\0" in value:
            raise TableError(target, what, value, "must not be empty or hold a zero byte")
        if self.choices and value not in self.choices:
            raise TableError(target, what, value, f"must be one of {', '.join(self.choices)}")

    def _check_number(self, target: str, what: str, value: int) -> None:
        if not self.low <= value <= self.high:
            raise TableError(target, what, value, f"must be from {self.low} to {self.high}")
        if self.power and value & (value - 1):
            raise TableError(target, what, value, "must be a power of two")
        if value % self.multiple:
            raise TableError(target, what, value, f"must be a multiple of {self.multiple}")

    def _check_group(self, target: str, what: str, value: tuple[str, ...]) -> None:
        if not self.low <= len(value) <= self.high:
            rule = f"must be from {self.low} to {self.high}"
            raise TableError(target, f"number of {what}", len(value), rule)
        if self.known is not None:
            list(each_feature(target, value, self.known))


def each_feature(
    target: str, words: tuple[str, ...], known: Mapping[str, int]
) -> Iterator[tuple[str, ...]]:
    """Yield each feature as its word, in the kernel's spelling, and the words that belong to it.

    Feature words are case-insensitive. One that ends in ':' in `known` carries its value in the
    same word. Raises TableError for an unknown feature and for missing values.
    """
    index = 0
    while index < len(words):
        word = words[index]
        key = word.lower()
        if key not in known:
            key = key.partition(":")[0] + ":"
        if key not in known:
            raise TableError(target, "feature", word, f"is unknown; known: {', '.join(known)}")
        following = words[index + 1 : index + 1 + known[key]]
        if len(following) < known[key]:
            raise TableError(target, "feature", word, f"needs {known[key]} words after it")
        yield (word if key.endswith(":") else key, *following)
        index += 1 + known[key]


def word_field(*, choices: tuple[str, ...] = (), dash: bool = False, optional: bool = False) -> Any:
    """A field that is one word."""
    return _field(Spec(FieldKind.WORD, choices=choices, dash=dash, optional=optional))


def device_field(*, dash: bool = False, optional: bool = False) -> Any:
    """A field that is a device: a path or major:minor."""
    return _field(Spec(FieldKind.DEVICE, dash=dash, optional=optional))


def number_field(
    low: int = 0,
    high: int = MAX64,
    *,
    power: bool = False,
    multiple: int = 1,
    dash: bool = False,
    optional: bool = False,
) -> Any:
    """A field that is a decimal number from `low` to `high`."""
    return _field(Spec(FieldKind.NUMBER, low, high, power, multiple, optional, dash))


def ratio_field() -> Any:
    """A field written `used/total`."""
    return _field(Spec(FieldKind.RATIO))


def group_field(
    high: int = MAX32, *, known: Mapping[str, int] | None = None, optional: bool = False
) -> Any:
    """A field that is a count and that many words.

    An optional group that is None writes nothing, an empty one writes the count 0; to the kernel
    the two are the same.
    """
    return _field(Spec(FieldKind.GROUP, high=high, known=known, optional=optional))


def _field(spec: Spec) -> Any:
    if spec.optional:
        return field(default=None, metadata={"spec": spec})
    return field(metadata={"spec": spec})


@dataclass(frozen=True, slots=True)
class Record:
    """The words of one target in a table or status line, as a value.

    `parse` and `str` are inverses: str(parse(text)) is the text with single spaces, and
    parse(str(value)) is the value.
    """

    name: ClassVar[str] = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the value of `text`, the words after the target's name. Raises TableError."""
        words = Words(cls.name, split(text))
        value = cls.take(words)
        words.end()
        return value

    @classmethod
    def take(cls, words: Words) -> Self:
        """Take the value's words off the front of `words`. Raises TableError."""
        values = {item.name: spec.take(words, item.name) for item, spec in _specs(cls)}
        return cls(**values)

    def words(self) -> list[str]:
        """Return the value as the words of a line."""
        found: list[str] = []
        for item, spec in _specs(type(self)):
            found += spec.words(getattr(self, item.name))
        return found

    def __str__(self) -> str:
        return join(self.words())

    def check_words(self) -> None:
        """Raise TableError when a word breaks a rule of its own."""
        for item, spec in _specs(type(self)):
            spec.check(self.name, item.name, getattr(self, item.name))

    @property
    def devices(self) -> tuple[str, ...]:
        """Every device that the line names, in the order of the line."""
        found: list[str] = []

        def collect(name: str) -> str:
            found.append(name)
            return name

        self.with_devices(collect)
        return tuple(found)

    def with_devices(self, rename: Callable[[str], str]) -> Self:
        """Return the same value with every device replaced by what `rename` makes of it."""
        changes: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            spec = item.metadata.get("spec")
            if spec is not None and spec.kind is FieldKind.DEVICE:
                changes[item.name] = value if value is None else rename(value)
            elif isinstance(value, Record):
                changes[item.name] = value.with_devices(rename)
            elif isinstance(value, tuple) and value and isinstance(value[0], Record):
                changes[item.name] = tuple(one.with_devices(rename) for one in value)
        return dataclasses.replace(self, **changes)

    def canonical(self) -> Self:
        """Return the value as the kernel would echo it: features in its spelling and order.

        Two lines that mean the same have equal canonical values, apart from defaults that a target
        fills in and from the way that a device is named.
        """
        changes: dict[str, Any] = {}
        for item, spec in _specs(type(self)):
            value = getattr(self, item.name)
            if spec.kind is FieldKind.GROUP and spec.known is not None and value is not None:
                changes[item.name] = _ordered(self.name, value, spec)
        return dataclasses.replace(self, **changes) if changes else self


def _ordered(target: str, value: tuple[str, ...], spec: Spec) -> tuple[str, ...] | None:
    known = list(spec.known or ())

    def place(words: tuple[str, ...]) -> int:
        key = words[0] if words[0] in known else words[0].partition(":")[0] + ":"
        return known.index(key)

    found = sorted(set(each_feature(target, value, spec.known or {})), key=place)
    if not found and spec.optional:
        return None
    return tuple(part for words in found for part in words)


def _specs(cls: type[Record]) -> Iterator[tuple[dataclasses.Field[Any], Spec]]:
    for item in dataclasses.fields(cls):
        spec = item.metadata.get("spec")
        if spec is not None:
            yield item, spec
