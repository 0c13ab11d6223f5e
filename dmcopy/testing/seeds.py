"""Seeds of a campaign, played where it says: a batch in one worker, and a failure made smaller.

What is played is a function of a seed. It fails by raising; what it returns is counted: a number,
or numbers by names. Its parameters that are whole numbers by default, such as `steps=40`, are what
a failure is made smaller by.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dmcopy.errors import UsageError

_SHOWN: Final = 4000

History = Callable[..., Any]


@dataclass
class Played:
    """What came of seeds: sums of what was counted, and of each failure its text."""

    seeds: list[int]
    counts: dict[str, int] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0


def find(name: str) -> History:
    """Return the function that MODULE:FUNCTION names; the working folder is looked in, too.

    Raises UsageError.
    """
    module, colon, attribute = name.partition(":")
    if not colon or not attribute or "/" in module:
        raise UsageError(
            f"{name!r} names no function: give MODULE:FUNCTION, as Python imports the module"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, SystemExit) else error
        raise UsageError(f"{module} cannot be imported: {why}") from error
    for word in attribute.split("."):
        found = getattr(found, word, None)
    if not callable(found):
        raise UsageError(f"{module} has no function {attribute}")
    function: History = found
    return function


def check(function: History, options: Mapping[str, int]) -> None:
    """Raise UsageError for what the function cannot be called with: it would fail at every seed."""
    try:
        inspect.signature(function).bind(0, **options)
    except TypeError as error:
        raise UsageError(f"{function.__qualname__} cannot be called so: {error}") from None
    except ValueError:  # one that has no signature that could be asked for
        pass


def play(name: str, seeds: Sequence[int], options: Mapping[str, int], *, stop: bool) -> Played:
    """Play seeds one after the other; `stop`: not those behind a failure."""
    function = find(name)
    played = Played([])
    began = time.process_time()
    for seed in seeds:
        played.seeds.append(seed)
        try:
            counted = function(seed, **options)
        except Exception as error:
            played.failures[seed] = _told(error)
            if stop:
                break
        else:
            for key, number in _numbers(counted).items():
                played.counts[key] = played.counts.get(key, 0) + number
    played.seconds = time.process_time() - began
    return played


def shrink(
    name: str, seed: int, options: Mapping[str, int], *, seconds: float = 60.0
) -> dict[str, int]:
    """Return the smallest options with which a seed still fails, as far as `seconds` suffice.

    One after the other is tried from 1 on, doubled each time, up to what it is by default.
    """
    function = find(name)
    least = dict(options)
    deadline = time.monotonic() + seconds
    for option, value in _sizes(function, options).items():
        size = 1
        while size < value and time.monotonic() < deadline:
            if _fails(function, seed, {**least, option: size}):
                least[option] = _least(function, seed, least, option, size, deadline)
                break
            size *= 2
    return least


def _least(
    function: History, seed: int, options: dict[str, int], option: str, fails: int, deadline: float
) -> int:
    """Return the least value that fails, between half of one that does and that one."""
    passes = fails // 2
    while fails - passes > 1 and time.monotonic() < deadline:
        middle = (passes + fails) // 2
        if _fails(function, seed, {**options, option: middle}):
            fails = middle
        else:
            passes = middle
    return fails


def _sizes(function: History, options: Mapping[str, int]) -> dict[str, int]:
    """Return the options of a history that are sizes, with what they are."""
    found = {}
    for option in inspect.signature(function).parameters.values():
        default = options.get(option.name, option.default)
        if isinstance(default, int) and not isinstance(default, bool) and default > 1:
            found[option.name] = default
    return found


def _fails(function: History, seed: int, options: Mapping[str, int]) -> bool:
    try:
        function(seed, **options)
    except Exception:
        return True
    return False


def _told(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"


def _numbers(counted: Any) -> dict[str, int]:
    """Return what a history counted: a mapping's numbers, a number as `count`, nothing else."""
    if isinstance(counted, bool) or counted is None:
        return {}
    if isinstance(counted, int):
        return {"count": counted}
    if isinstance(counted, Mapping):
        return {str(key): int(number) for key, number in counted.items()}
    return {}
