"""multipath: several paths to one disk.

Rules: drivers/md/dm-mpath.c, read in 6.1 and 6.12; a path selector's own words are passed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from dmcopy.table.record import Record, device_field, each_feature
from dmcopy.table.target import Target, register
from dmcopy.table.words import Words

FEATURES = {
    "queue_if_no_path": 0,
    "pg_init_retries": 1,
    "pg_init_delay_msecs": 1,
    "retain_attached_hw_handler": 0,
    "queue_mode": 1,
}
_LIMITS = {"pg_init_retries": (1, 50), "pg_init_delay_msecs": (0, 60000)}


@dataclass(frozen=True, slots=True)
class Path(Record):
    """A device, and the words that its group's selector takes for it."""

    device: str = device_field()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PathGroup(Record):
    """A priority group: a path selector, its words, and its paths, each with as many words."""

    selector: str
    selector_words: tuple[str, ...]
    paths: tuple[Path, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        selector = words.word("path selector")
        selector_words = words.group("selector words")
        count = words.number("number of paths")
        each = words.number("number of words for each path")
        paths = tuple(
            Path(words.word("path"), words.take(each, "words for each path")) for _ in range(count)
        )
        return cls(selector, selector_words, paths)

    def words(self) -> list[str]:
        each = len(self.paths[0].arguments) if self.paths else 0
        found = [self.selector, str(len(self.selector_words)), *self.selector_words]
        found += [str(len(self.paths)), str(each)]
        return found + [word for path in self.paths for word in (path.device, *path.arguments)]


@register
@dataclass(frozen=True, slots=True)
class Multipath(Target):
    """`multipath <#features> ... <#handler words> ... <#groups> <next group> <group>...`.

    `next_group` counts from 1, and is 0 exactly when there are no groups. Must be the only line of
    its table.
    """

    name: ClassVar[str] = "multipath"
    singleton: ClassVar[bool] = True

    features: tuple[str, ...]
    handler: tuple[str, ...]
    next_group: int
    groups: tuple[PathGroup, ...]

    @classmethod
    def take(cls, words: Words) -> Self:
        features = words.group("features")
        handler = words.group("handler words")
        count = words.number("number of groups")
        next_group = words.number("next group")
        groups = tuple(PathGroup.take(words) for _ in range(count))
        return cls(features, handler, next_group, groups)

    def words(self) -> list[str]:
        found = [str(len(self.features)), *self.features]
        found += [str(len(self.handler)), *self.handler]
        found += [str(len(self.groups)), str(self.next_group)]
        return found + [word for group in self.groups for word in group.words()]

    def _check(self, length: int) -> None:
        del length
        for feature in each_feature(self.name, self.features, FEATURES):
            self._check_feature(feature)
        if bool(self.groups) != bool(self.next_group):
            rule = f"must be {'from 1 on' if self.groups else '0'}: there are {len(self.groups)}"
            raise self._wrong("next group", self.next_group, rule)
        for group in self.groups:
            if not group.paths:
                raise self._wrong("number of paths", 0, f"of a {group.selector} group must be 1 up")
            if len({len(path.arguments) for path in group.paths}) > 1:
                rule = "must be the same for every path of a group"
                raise self._wrong("number of words for each path", None, rule)

    def _check_feature(self, feature: tuple[str, ...]) -> None:
        if feature[0] in _LIMITS:
            low, high = _LIMITS[feature[0]]
            value = Words(self.name, feature[1:]).number(feature[0])
            if not low <= value <= high:
                raise self._wrong(feature[0], value, f"must be from {low} to {high}")
        if feature[0] == "queue_mode" and feature[1].lower() not in ("bio", "rq", "mq"):
            raise self._wrong("queue_mode", feature[1], "must be bio, rq or mq")

    def describe(self) -> str:
        paths = ", ".join(path.device for group in self.groups for path in group.paths)
        return f"is one disk reached by {paths or 'no path'} (path groups: {len(self.groups)})"
