"""What the steps of workflows do besides what a mapper does: to files and to stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dmcopy.mapper.base import Mapper
from dmcopy.workflows.machine import Machine
from dmcopy.workflows.step import Step


class Action(Protocol):
    """What a verb of a workflow's own does. Both may be called when it is done already."""

    def do(self, step: Step) -> None:
        """Do it on the mapper's devices."""

    def undo(self, step: Step) -> None:
        """Take it back."""


@dataclass(frozen=True, slots=True)
class _Simple:
    forth: Callable[[Step], None]
    back: Callable[[Step], None] = lambda _: None

    def do(self, step: Step) -> None:
        self.forth(step)

    def undo(self, step: Step) -> None:
        self.back(step)


def actions(mapper: Mapper, machine: Machine) -> dict[str, Action]:
    """Return the actions by verb.

    attach, detach: a file as a loop device. grow: a file and its loop device. wipe: the beginning
    of a device. clean, and the undo of wipe: the same where a store is, which would be in the way
    of the next snapshot; if the device has been used for something else meanwhile, that stays.
    retire: remove a device, at its last close if it is in use.
    """

    def retire(step: Step) -> None:
        if mapper.exists(step.device):
            mapper.remove(step.device, deferred=True)

    def wipe(step: Step) -> None:
        machine.wipe(step.device, step.size)

    def clean(step: Step) -> None:
        if machine.has_store(step.device):
            machine.wipe(step.device, step.size)

    def attach(step: Step) -> None:
        machine.attach(step.device)

    def detach(step: Step) -> None:
        machine.detach(step.device)

    return {
        "attach": _Simple(attach, detach),
        "detach": _Simple(detach, attach),
        "grow": _Simple(lambda step: machine.grow(step.device, step.size)),
        "wipe": _Simple(wipe, clean),
        "clean": _Simple(clean),
        "retire": _Simple(retire),
    }
