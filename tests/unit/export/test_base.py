"""The choice of a front end."""

from __future__ import annotations

import sys
import types

import pytest

from dmcopy.errors import BusyError, DeviceError, MissingError, UsageError
from dmcopy.export import base
from dmcopy.export.kinds import kinds


def front_end(kind: str, reason: str) -> type[base.FrontEnd]:
    class Other(base.FrontEnd):
        @classmethod
        def why_not(cls) -> str:
            return reason

    Other.kind = kind
    return Other


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[type[base.FrontEnd]]:
    found = [front_end("first", "there is no /dev/first"), front_end("second", "")]
    for one in found:
        module = types.ModuleType(f"front_{one.kind}")
        module.FRONT_END = one  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    modules = {one.kind: f"front_{one.kind}" for one in found}
    for place in ("base", "kinds"):
        monkeypatch.setattr(f"dmcopy.export.{place}.MODULES", modules)
    return found


def test_the_first_that_works_is_chosen(two: list[type[base.FrontEnd]]) -> None:
    assert kinds() == ("first", "second")
    assert base.find() is two[1]
    assert base.find("second") is two[1]


def test_one_that_does_not_work_is_refused_with_the_reason(
    two: list[type[base.FrontEnd]],
) -> None:
    assert base.load("first") is two[0]
    with pytest.raises(MissingError, match=r"first: there is no /dev/first$"):
        base.find("first")


def test_an_unknown_one_is_a_mistake_in_usage(two: list[type[base.FrontEnd]]) -> None:
    del two
    with pytest.raises(UsageError, match=r"no front end 'secnd'.*second"):
        base.find("secnd")


def test_each_is_closed_whatever_becomes_of_the_others() -> None:
    """Those in use are named together; what cannot be closed or even cut off is told, and first."""
    cut: list[str] = []

    def close(name: str) -> None:
        if name in errors:
            raise errors[name]

    def cut_off(name: str) -> None:
        cut.append(name)
        if name == "stuck":
            raise DeviceError("/dev/x", "unmount it", 1)

    errors: dict[str, Exception] = {
        "one": BusyError("one", ["process 1"]),
        "two": BusyError("two", ["process 2"]),
    }
    with pytest.raises(BusyError, match="in use by process 1, process 2; they were cut off"):
        base.close_each(["free", "one", "two"], close, cut_off)
    assert cut == ["one", "two"]
    errors["bad"] = MissingError("no more threads")
    with pytest.raises(MissingError, match="no more threads"):
        base.close_each(["one", "bad", "two"], close, cut_off)
    assert cut == ["one", "two", "one", "bad", "two"]
    errors["stuck"] = BusyError("stuck", ["process 3"])
    with pytest.raises(BusyError, match="process 3") as caught:
        base.close_each(["stuck", "one"], close, cut_off)
    assert caught.value.__notes__ == [
        "and then, while cleaning up: /dev/x: cannot unmount it: Operation not permitted"
    ]
    assert cut[-1] == "one"
