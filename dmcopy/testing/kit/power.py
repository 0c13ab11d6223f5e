"""Power cuts in the middle of a test.

    def test_it(scratch_disk, power_cut):
        disk = scratch_disk("8M")
        power_cut(program.write, disk)      # runs it, then the power goes, and comes back
        assert program.check(disk)

One call, and not two tests: what comes before and after a cut is one story, which is selected,
parametrised and reported as one; and the same lines do for a machine that starts again. On the
model and on the host the cut happens within the test. A guest is killed and booted again on its
disks, and the test begins again, from its first line: a call whose cut has happened does nothing
and returns. So what is to happen once, as making a file system, is given to `power_cut`; what
stands outside of it makes devices, and looks at them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol

from dmcopy.testing.kit.environment import LackingError
from dmcopy.testing.kit.kit import Kit

P = ParamSpec("P")


class PowerSwitch(Protocol):
    """Kills the machine that this runs on."""

    def phase(self, nodeid: str) -> int:
        """Return how many power cuts a test has behind it."""

    def cut_power(self, nodeid: str, seed: int | None) -> None:
        """Cut the power: this never returns."""


class PowerCut:
    """The fixture `power_cut`. `machine`: where it is one that is really killed."""

    def __init__(self, kit: Kit, nodeid: str, machine: PowerSwitch | None = None) -> None:
        self._kit = kit
        self._nodeid = nodeid
        self._machine = machine
        self._calls = 0

    def __call__(
        self,
        work: Callable[P, object],
        *args: P.args,
        **options: P.kwargs,
    ) -> None:
        """Run `work`, then cut the power: all that was not flushed is lost."""
        self.cut(lambda: work(*args, **options))

    def cut(
        self,
        work: Callable[[], object],
        *,
        seed: int | None = None,
        after_writes: int | None = None,
    ) -> None:
        """Run `work`, and cut the power at its end, or after `after_writes` writes to the disks.

        `seed`: some of what was not flushed is kept, or torn by block, the same for the same seed.
        From then on the disks fail, and what `work` raises about it is expected;
        where it made less, the power goes at its end. Not in a guest: there that test is skipped.
        """
        self._calls += 1
        if self._machine is not None:
            if after_writes is not None:
                raise LackingError("a guest is not killed after a number of writes")
            if self._calls > self._machine.phase(self._nodeid):
                work()
                self._machine.cut_power(self._nodeid, seed)
            return
        power = self._kit.environment.power
        power.writes_left = after_writes
        try:
            work()
        except Exception:
            if not power.off:
                raise
        self._kit.cut_power(seed)
