"""The same steps on two engines, and where they differ first.

    with compare.pair({"disk0": 2048}) as (kernel, user):    # as root, with device-mapper
        steps = [Load("dev", "0 2048 linear @disk0 0"), Resume("dev"), *bursts(7, "dev", 2048)]
        difference = compare.first_difference(steps, kernel, user)
        assert difference is None, difference

A target of your own is held to the kernel's by `instead={"snapshot": "my-snapshot"}`: the second
engine then has it where the steps say `snapshot`. `engines=("user", "user")` compares two targets
in userspace, without root.

A `Harness` is an engine with disks of its own, whose devices are called by the names that the steps
have for them. `Comparison` plays the steps. What is compared after which step, and how long it may
take until both show the same, is in its methods, which your own suite can override.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from dmcopy.io import Op, Reactor
from dmcopy.io.threads import ThreadsBackend
from dmcopy.ledger import Ledger
from dmcopy.mapper.base import PREFIX
from dmcopy.mapper.engines import EngineName
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.userspace import UserMapper
from dmcopy.testing.disks import Disks
from dmcopy.testing.harness import Harness, RequestResult, View, has_ended, result
from dmcopy.testing.steps import Access, Burst, Step
from dmcopy.units import PAGE_SIZE, SECTOR_SHIFT

__all__ = [
    "Comparison",
    "DifferenceError",
    "Disks",
    "Harness",
    "RequestResult",
    "View",
    "first_byte",
    "first_difference",
    "has_ended",
    "kernel_reactor",
    "pair",
    "result",
]

PATIENCE_SECONDS: Final = 20.0
MOST_IN_FLIGHT: Final = 128
_SHOWN_STEPS: Final = 60


class DifferenceError(AssertionError):
    """Two engines differ in `what`, after the steps `steps`; `found`: what each of them shows."""

    def __init__(self, what: str, found: Mapping[str, object], steps: list[Step]) -> None:
        self.what = what
        self.found = dict(found)
        self.steps = list(steps)
        shown = "".join(f"\n{label}: {value}" for label, value in self.found.items())
        history = "".join(f"\n  {step}" for step in self.steps[-_SHOWN_STEPS:])
        super().__init__(f"{what} differs after step {len(self.steps)}{shown}\nsteps:{history}")


class Comparison:
    """Steps played on two engines. `patience`: how many seconds they may take to show the same.

    `disks`: those of which the content is compared at the end; by default all.
    """

    def __init__(
        self,
        one: Harness,
        other: Harness,
        *,
        patience: float = PATIENCE_SECONDS,
        disks: Iterable[str] | None = None,
    ) -> None:
        self.both = one, other
        self.patience = patience
        self.steps: list[Step] = []
        self._disks = list(one.disks.sizes if disks is None else disks)

    def play(self, steps: Iterable[Step]) -> None:
        """Play steps to their end. Raises DifferenceError at the first difference."""
        for step in steps:
            self.do(step)
        self.at_end()

    def do(self, step: Step) -> None:
        self.steps.append(step)
        accesses = step.accesses if isinstance(step, Burst) else ()
        results = [harness.do(step) for harness in self.both]
        self.same_results("the step's result", accesses, *results)
        self.after(step)

    def after(self, step: Step) -> None:
        """Compare what is to be the same after a step."""
        del step
        self.agree("status, table or events", lambda harness: harness.looks())

    def at_end(self) -> None:
        """Compare what is to be the same at the end: what devices and disks hold."""
        found = [harness.contents() for harness in self.both]
        for name in sorted(found[0].keys() & found[1].keys()):
            self.same_results("content", [Access(Op.READ, name)], *(one[name] for one in found))
        self.same("content", *found)
        for disk in self._disks:
            self.same_bytes(f"disk {disk}", *(harness.disks.peek(disk) for harness in self.both))

    def agree(self, what: str, look: Callable[[Harness], object]) -> None:
        """Compare what they show as soon as it is the same, or `patience` is over."""
        deadline = time.monotonic() + self.patience
        while True:
            found = [look(harness) for harness in self.both]
            if found[0] == found[1] or time.monotonic() > deadline:
                break
            for harness in self.both:
                harness.step()
        self.same(what, *found)

    def same(self, what: str, one: object, other: object) -> None:
        """Raise DifferenceError unless the two are the same."""
        if one != other:
            labels = [harness.label for harness in self.both]
            if labels[0] == labels[1]:
                labels = ["first", "second"]
            raise DifferenceError(what, dict(zip(labels, (one, other), strict=True)), self.steps)

    def same_results(
        self, what: str, accesses: Iterable[Access], one: object, other: object
    ) -> None:
        """Raise DifferenceError unless requests ended alike; for data read, with its sector.

        Both are what `Harness.do` returned for a burst of `accesses`.
        """
        if isinstance(one, list) and isinstance(other, list):
            for access, *both in zip(accesses, one, other, strict=False):
                if all(result.data for result in both):
                    read = (result.data for result in both)
                    self.same_bytes(f"{what}: {access.device}", *read, start=access.sector)
        self.same(what, one, other)

    def same_bytes(self, what: str, one: bytes, other: bytes, *, start: int = 0) -> None:
        """Raise DifferenceError with the first sector in which contents from `start` on differ."""
        if (place := first_byte(one, other)) is not None:
            near = [data[place & ~511 : (place | 511) + 1].hex(" ", 4) for data in (one, other)]
            sector = start + (place >> SECTOR_SHIFT)
            self.same(f"{what}, from byte {place & 511} of sector {sector},", *near)


def first_difference(
    steps: Iterable[Step],
    one: Harness,
    other: Harness,
    *,
    patience: float = PATIENCE_SECONDS,
    disks: Iterable[str] | None = None,
) -> DifferenceError | None:
    """Play steps on both; return where they differ first. See `Comparison`."""
    try:
        Comparison(one, other, patience=patience, disks=disks).play(steps)
    except DifferenceError as difference:
        return difference
    return None


@contextlib.contextmanager
def pair(
    disks: Mapping[str, int],
    *,
    engines: tuple[EngineName, EngineName] = ("kernel", "user"),
    sector_size: int = 512,
    instead: Mapping[str, str] | None = None,
    ledger: Ledger | None = None,
) -> Iterator[tuple[Harness, Harness]]:
    """Start two engines for the length of a `with` block, each with disks of its own in memory.

    `disks`: their sizes in sectors, by their names; `sector_size`: of their blocks, in bytes.
    `instead`: targets of the second engine, by the names of those that the steps have.
    Where one engine is the kernel, the disks of both are loop devices. What is made is noted in
    `ledger`, by default the user's; at the end every device that the steps have left is removed.
    """
    with contextlib.ExitStack() as exits:
        parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
        folder = exits.enter_context(tempfile.TemporaryDirectory(dir=parent, prefix=PREFIX))
        loops = "kernel" in engines or sector_size != 512
        both: list[Harness] = []
        for number, name in enumerate(engines):
            mapper = exits.enter_context(_mapper(name, ledger))
            place = Path(folder, str(number))
            made = Disks(place, disks, loops=loops, sector_size=sector_size, ledger=ledger)
            exits.enter_context(made)
            prefix = f"{PREFIX}{os.urandom(3).hex()}-" if name == "kernel" else ""
            harness = Harness(
                name, mapper, made, prefix=prefix, instead=instead if number else None
            )
            exits.callback(harness.close)
            both.append(harness)
        yield both[0], both[1]


def kernel_reactor() -> Reactor:
    """Return a reactor for a `KernelMapper` that is compared.

    On threads: a write that is held has one wait for it, and none must wait for a free one; and a
    durable write flushes, as `Harness.start` has it.
    """
    return Reactor(functools.partial(ThreadsBackend, workers=MOST_IN_FLIGHT), stacked=True)


@contextlib.contextmanager
def _mapper(name: EngineName, ledger: Ledger | None) -> Iterator[KernelMapper | UserMapper]:
    if name == "user":
        with UserMapper() as user:
            yield user
        return
    with kernel_reactor() as reactor, KernelMapper(ledger=ledger, reactor=reactor) as kernel:
        yield kernel


def first_byte(one: bytes, other: bytes) -> int | None:
    """Return where two contents differ first; None where they do not."""
    if one == other:
        return None
    pages = (slice(start, start + PAGE_SIZE) for start in range(0, len(one), PAGE_SIZE))
    page = next((page for page in pages if one[page] != other[page]), slice(len(one), None))
    pairs = enumerate(zip(one[page], other[page], strict=False), page.start)
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
