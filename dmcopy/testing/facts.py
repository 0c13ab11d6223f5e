"""What a report says of the machine that tests ran on, and of the devices of one that failed."""

from __future__ import annotations

import functools
import os
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import pytest
from _pytest.junitxml import xml_key

from dmcopy.block import tools
from dmcopy.errors import DmcopyError

if TYPE_CHECKING:
    from dmcopy.mapper.base import Mapper
    from dmcopy.testing.kit import Kit

_SECONDS: Final = 60.0
_SEEDS: Final = ("DMCOPY_TEST", "DMCOPY_SEED", "DMCOPY_CRASH")
_TARGETS: Final = ("linear", "snapshot", "snapshot-origin", "snapshot-merge", "mirror")


def machine() -> str:
    """Return the versions of the kernel, its targets that are loaded, dmsetup and udev."""
    dmsetup = _said(["dmsetup", "version"])
    library = re.search(r"Library version: +(\S+)", dmsetup)
    driver = re.search(r"Driver version: +(\S+)", dmsetup)
    udev = re.match(r"\d+", _said(["udevadm", "--version"]))
    targets = re.findall(r"^(\S+) +v(\S+)", _said(["dmsetup", "targets"]), re.MULTILINE)
    words = [
        f"kernel {os.uname().release}",
        f"dm {driver[1] if driver else 'none'}",
        f"dmsetup {library[1] if library else 'none'}",
        f"udev {udev[0] if udev else 'none'}",
        *(f"{name} {version}" for name, version in sorted(targets)),
    ]
    return ", ".join(words)


def model() -> str:
    """Return the versions of the model, and of the targets that most tests are about."""
    from dmcopy import __version__
    from dmcopy.targets import TARGETS

    found = (f"{name} {'.'.join(map(str, TARGETS[name].version))}" for name in _TARGETS)
    return ", ".join([f"dmcopy {__version__}", *found])


def note(config: pytest.Config, machines: Mapping[str, str]) -> None:
    """Have them as properties of the suite in JUnit's file, if there is to be one."""
    xml = config.stash.get(xml_key, None)
    if xml is None:
        return
    for place, text in machines.items():
        xml.add_global_property(f"dmcopy {place}", text)


def devices(kit: Kit) -> str:
    """Return the table and status of each device of a test; nothing is flushed for it."""
    lines = []
    for device in kit.devices:
        lines.append(f"{device.name}:")
        try:
            lines += kit.environment.call(functools.partial(_device, device.name))
        except DmcopyError as error:
            lines.append(f"  {error}")
    return "\n".join(lines)


def _device(name: str, mapper: Mapper) -> list[str]:
    state = " (suspended)" if mapper.info(name).suspended else ""
    lines = [f"  table{state}: {line}" for line in mapper.table(name)]
    return [*lines, *(f"  status: {line}" for line in mapper.status(name, flush=False))]


def alone(nodeid: str, *options: str) -> str:
    """Return the command that runs one test alone, as it was run."""
    seeds = [f"{name}={shlex.quote(os.environ[name])}" for name in _SEEDS if name in os.environ]
    return " ".join([*seeds, "pytest", *options, shlex.quote(nodeid)])


def _said(argv: list[str]) -> str:
    try:
        return tools.run(argv, timeout=_SECONDS).stdout
    except DmcopyError:
        return ""
