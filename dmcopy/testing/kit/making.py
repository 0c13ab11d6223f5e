"""The kit of a test at a place, with the disks that its mark names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from dmcopy.testing.kit.environment import Environment
from dmcopy.testing.kit.kit import Kit
from dmcopy.testing.kit.power import PowerSwitch
from dmcopy.testing.needs import Needs


@contextlib.contextmanager
def kit(
    place: str, needs: Needs, fixtures: Sequence[str], machine: PowerSwitch | None, nodeid: str
) -> Iterator[Kit]:
    """Prepare a place for the length of a `with` block, and make a kit of it.

    `fixtures`: what the test uses. Where it cuts the power, its disks can lose it.
    """
    phase = 0 if machine is None else machine.phase(nodeid)
    with Kit(_environment(place, volatile="power_cut" in fixtures, phase=phase)) as made:
        for disk in needs.vm_disks():
            made.scratch_disk(disk.size, serial=disk.serial)
        yield made


def _environment(place: str, *, volatile: bool, phase: int) -> Environment:
    match place:
        case "model":
            from dmcopy.testing.kit.model import Model

            return Model(volatile=volatile)
        case "host":
            from dmcopy.testing.kit.host import ThisHost

            return ThisHost(volatile=volatile)
        case _:
            from dmcopy.testing.kit.guest import InGuest

            return InGuest(volatile=volatile, phase=phase)
