"""A target of one's own and its parts get their names together, or none of them does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pytest

from dmcopy.errors import UsageError
from dmcopy.status import STATUSES
from dmcopy.table import TARGETS as TABLE_TARGETS
from dmcopy.table import Line, device_field
from dmcopy.targets import TARGETS, Target, register
from dmcopy.targets.linear import Linear
from tests.unit.targets.examples import forgotten


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    with forgotten(__name__, "somewhere"):
        yield


class Words(Line):
    device: str = device_field()


@dataclass(frozen=True)
class Status:
    name: ClassVar[str] = ""
    text: str

    @classmethod
    def parse(cls, words: tuple[str, ...]) -> Self:
        return cls(" ".join(words))

    def __str__(self) -> str:
        return self.text


def test_a_class_with_all_of_its_own() -> None:
    mine = register(type("Mine", (Target,), {"name": "mine", "Words": Words, "Status": Status}))
    assert TARGETS["mine"] is mine
    assert TABLE_TARGETS["mine"] is Words
    assert STATUSES.get("mine") is Status  # type: ignore[comparison-overlap]
    assert Words.name == Status.name == "mine"


def test_one_that_derives_from_another_has_the_others_words() -> None:
    register(type("Mine", (Linear,), {"name": "mine"}))
    assert issubclass(TABLE_TARGETS["mine"], TABLE_TARGETS["linear"])
    assert TABLE_TARGETS["mine"].name == "mine"
    assert ("mine" in STATUSES) == ("linear" in STATUSES)
    register(type("Yours", (TARGETS["mirror"],), {"name": "yours"}))
    assert issubclass(STATUSES["yours"], STATUSES["mirror"])


@pytest.mark.parametrize("part", ["Words", "Status"])
def test_where_a_part_has_a_name_that_is_taken_nothing_is_registered(part: str) -> None:
    """Else the target would be there without its words."""
    tables: dict[str, Any] = {"Words": TABLE_TARGETS, "Status": STATUSES}
    other = type("Other", (), {"name": "mine", "__module__": "somewhere"})
    tables[part].register(other)
    with pytest.raises(UsageError, match="cannot be target 'mine', which somewhere has"):
        register(type("Mine", (Target,), {"name": "mine", "Words": Words, "Status": Status}))
    assert "mine" not in TARGETS
    assert [name for name, one in tables.items() if "mine" in one] == [part]
