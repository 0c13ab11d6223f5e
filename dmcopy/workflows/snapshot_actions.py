"""What the steps of a snapshot workflow do besides what a mapper does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dmcopy.mapper.base import Mapper
from dmcopy.workflows.nodes import Nodes
from dmcopy.workflows.record import Step
from dmcopy.workflows.steps import Action


@dataclass(frozen=True, slots=True)
class _Simple:
    """An action made of two functions, each of which may be called when it is done already."""

    forth: Callable[[Step], None]
    back: Callable[[Step], None] = lambda _: None

    def do(self, step: Step) -> None:
        self.forth(step)

    def undo(self, step: Step) -> None:
        self.back(step)


def actions(mapper: Mapper, nodes: Nodes) -> dict[str, Action]:
    """Return the actions by verb.

    attach, detach: a file as a loop device. grow: a file and its loop device; `table` is the size
    in sectors. wipe: the beginning of a device; `table` is how many sectors. clean, and the undo of
    wipe: the same where a store is, which would be in the way of the next snapshot; if somebody has
    used the device for something else meanwhile, that stays. retire: remove a device, at its last
    close if somebody uses it.
    """

    def retire(step: Step) -> None:
        if mapper.exists(step.device):
            mapper.remove(step.device, deferred=True)

    def wipe(step: Step) -> None:
        nodes.wipe(step.device, int(step.table))

    def clean(step: Step) -> None:
        if nodes.has_store(step.device):
            nodes.wipe(step.device, int(step.table))

    def attach(step: Step) -> None:
        nodes.attach(step.device)

    def detach(step: Step) -> None:
        nodes.detach(step.device)

    return {
        "attach": _Simple(attach, detach),
        "detach": _Simple(detach, attach),
        "grow": _Simple(lambda step: nodes.grow(step.device, int(step.table))),
        "wipe": _Simple(wipe, clean),
        "clean": _Simple(clean),
        "retire": _Simple(retire),
    }
