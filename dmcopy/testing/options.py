"""The plugin's options, on the command line and in the ini file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from dmcopy.testing.keeping import Keeper

PLACES: Final = ("model", "host", "vm")
PROVIDERS: Final = ("qemu", "vagrant")
MACHINES: Final = pytest.StashKey[dict[str, str]]()
"""On what tests have run: a line for each place, and for each kernel of guests."""
KEEPER: Final[pytest.StashKey[Keeper]] = pytest.StashKey()
"""What goes with a test of block devices."""
_BUILT_IN: Final = pytest.StashKey[set[str]]()


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("dmcopy", "tests with block devices")
    group.addoption(
        "--dm",
        metavar="PLACES",
        help="where tests with block devices run: model, host, vm, or several of them "
        "(default: vm with --vm, else model; ini: dm)",
    )
    group.addoption(
        "--dm-strict",
        action="store_true",
        help="what a place lacks is an error, not a skip (ini: dm_strict)",
    )
    group.addoption("--vm", metavar="KERNELS", help="boot guests: 6.1,6.12 … (ini: vm)")
    group.addoption(
        "--vm-provider",
        metavar="NAME",
        help="what boots guests: qemu (the default), or vagrant (ini: vm_provider)",
    )
    group.addoption("--vm-memory", default="2G", help="of each guest (default: %(default)s)")
    group.addoption(
        "--vm-silence",
        type=float,
        default=900.0,
        metavar="S",
        help="seconds without a result after which a guest is given up (default: %(default)s)",
    )
    group.addoption(
        "--vm-disk",
        action="append",
        default=[],
        metavar="SIZE,serial=NAME",
        help="another disk of each guest, or another size for a, b, c or d (may be repeated)",
    )
    group.addoption(
        "--vm-env",
        action="append",
        default=[],
        metavar="NAME",
        help="pass on a variable of the environment (may be repeated)",
    )
    group.addoption(
        "--vm-share",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder that guests write to, at the same path (may be repeated)",
    )
    group.addoption("--vm-report", action="store_true", help="(in a guest) report to the host")
    group.addoption("--vm-phase", type=int, default=0, help="(in a guest) power cuts so far")
    parser.addini("dm", "where tests with block devices run, as for --dm")
    parser.addini("dm_strict", "what a place lacks is an error", type="bool", default=False)
    parser.addini("vm", "the kernels of guests, as for --vm")
    parser.addini("vm_provider", "what boots guests, as for --vm-provider")


def note(config: pytest.Config) -> None:
    """Note the options that there are before any conftest is read."""
    config.stash[_BUILT_IN] = set(_all(config))


def kernels(config: pytest.Config) -> str:
    """Return the kernels of guests as they were said, "" for none."""
    return str(config.getoption("--vm") or config.getini("vm") or "")


def provider(config: pytest.Config) -> str:
    """Return what boots guests. Raises pytest.UsageError."""
    said = str(config.getoption("--vm-provider") or config.getini("vm_provider") or PROVIDERS[0])
    if said not in PROVIDERS:
        raise pytest.UsageError(f"--vm-provider: {said!r} is neither qemu nor vagrant")
    return said


def strict(config: pytest.Config) -> bool:
    """Whether what a place lacks is an error."""
    return bool(config.getoption("--dm-strict") or config.getini("dm_strict"))


def places(config: pytest.Config) -> tuple[str, ...]:
    """Return the places where tests run. Raises pytest.UsageError."""
    guests = bool(kernels(config))
    said = config.getoption("--dm") or config.getini("dm") or ("vm" if guests else "model")
    words = tuple(dict.fromkeys(word.strip() for word in said.split(",")))
    for word in words:
        if word not in PLACES:
            raise pytest.UsageError(f"--dm: no place {word!r}: give one or more of model, host, vm")
    if "vm" in words and not guests:
        raise pytest.UsageError("--dm=vm: say in which kernels, as in --vm 6.1,6.12")
    return words


def time_limit(item: pytest.Item) -> float:
    """Return the seconds that pytest-timeout gives a test; 0 for any number."""
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        return float(mark.args[0] if mark.args else mark.kwargs.get("timeout") or 0)
    option = item.config.getoption("timeout", None)
    return float(option if option is not None else item.config.getini("timeout") or 0)


def of_conftests(config: pytest.Config) -> list[str]:
    """Return the words of the command line that are options which conftests have added."""
    known = _all(config)
    built_in = config.stash.get(_BUILT_IN, None)
    own = set() if built_in is None else set(known) - built_in
    words = [str(word) for word in config.invocation_params.args]
    found: list[str] = []
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if name in own:
            found.append(word)
            if known[name] and not equals and words:
                found.append(words.pop(0))
    return found


def _all(config: pytest.Config) -> dict[str, bool]:
    """Return all options, and whether each takes a value."""
    actions = config._parser.optparser._actions
    return {name: action.nargs != 0 for action in actions for name in action.option_strings}
