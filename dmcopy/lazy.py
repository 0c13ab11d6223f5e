"""What is imported when it is first asked for: there are two dozen targets, and most runs need one.

To make the types of all of them takes longer than many a command does.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Protocol, TypeVar

from dmcopy import plugins
from dmcopy.errors import UsageError, limits_told

_NAME: Final = re.compile(r"[!-~]{1,15}")  # DM_MAX_TYPE_NAME in include/uapi/linux/dm-ioctl.h


class _Named(Protocol):
    name: ClassVar[str]


_T = TypeVar("_T", bound=_Named)
_Class = TypeVar("_Class", bound=type[_Named])


class Registry(Mapping[str, type[_T]]):
    """Types by the name of their target. `modules` of `package`: the names that each has types for.

    Looking one up imports its module, which adds it; naming and counting them imports nothing.
    Only `find` also asks installed packages.
    """

    def __init__(self, package: str, **modules: str) -> None:
        self._modules = _places(package, modules)
        self._types: dict[str, type[_T]] = {}

    def register(self, cls: _Class) -> _Class:
        """Make `cls` the type of the target that it is named after. Raises as `check` does."""
        self.check(cls)
        self._modules[cls.name] = cls.__module__
        self._types[cls.name] = cls  # type: ignore[assignment]
        return cls

    def check(self, cls: type[_Named]) -> None:
        """Raise UsageError for a type whose name cannot be, or is another type's."""
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"{cls.__qualname__}.name is {name!r}: it must be 1 to 15 visible characters"
            )
        before = self._types.get(name, cls)
        place = self._modules.get(name, cls.__module__)
        if (place, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(
                f"{cls.__qualname__} cannot be target '{name}', which {place} has: "
                f"give it another name"
            )

    def find(self, name: str) -> type[_T] | None:
        """Return the type of a target, be it one that another package offers; None if none does.

        Raises what importing that package's module raises, see `plugins`.
        """
        if name not in self._modules:
            plugins.load_entry_point(name)
        return self.get(name)

    def __getitem__(self, name: str) -> type[_T]:
        if name not in self._types:
            with limits_told():
                importlib.import_module(self._modules[name])
        return self._types[name]

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def attributes(package: str, **modules: str) -> Callable[[str], Any]:
    """Return a package's `__getattr__` (PEP 562). `modules`: the names that each has, in words."""
    places = _places(package, modules)

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with limits_told():
            value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)  # from now on it is found without us
        return value

    return get


def _places(package: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {
        name: f"{package}.{module}" for module, names in modules.items() for name in names.split()
    }
