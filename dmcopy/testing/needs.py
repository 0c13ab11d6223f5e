"""The needs of a test, by its mark `dm`, and those that the place where it is to run lacks.

Nothing here is imported but what every pytest run can afford: the plugin reads it at its start.
"""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from dmcopy.vm import Disk

MARK: Final = (
    "dm(targets=[…], kernel='>=6.1', root=True, disks=['1G,serial=a']): what a test of block "
    "devices needs; where it is lacking, the test is skipped, and with --dm-strict an error"
)
MODEL_KERNEL: Final = (6, 12)
"""The kernel that the model's targets are made after."""

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_VERSION: Final = re.compile(r"(>=|<=|==|!=|>|<) *(\d+)\.(\d+)")


@dataclass(frozen=True)
class Needs:
    """All that the marks of a test say. `disks`: texts as for `--vm-disk`."""

    targets: tuple[str, ...] = ()
    kernel: str = ""
    root: bool = False
    disks: tuple[str, ...] = ()

    @classmethod
    def of(cls, item: pytest.Item) -> Needs:
        """Return what the marks of a test come to. Raises pytest.UsageError for a wrong one."""
        targets: list[str] = []
        disks: list[str] = []
        kernels: list[str] = []
        root = False
        for mark in item.iter_markers("dm"):
            given = dict(mark.kwargs)
            targets += _words(item, "targets", given.pop("targets", ()))
            disks += _words(item, "disks", given.pop("disks", ()))
            kernels += [given.pop("kernel")] if "kernel" in given else []
            root = bool(given.pop("root", False)) or root
            if mark.args or given:
                odd = ", ".join([*map(repr, mark.args), *given])
                raise _wrong(item, f"it knows targets, kernel, root and disks, not {odd}")
        needs = cls(tuple(targets), ", ".join(map(str, kernels)), root, tuple(disks))
        needs._conditions(item)
        needs._disks(item)
        return needs

    def vm_disks(self) -> list[Disk]:
        """Return the disks that a guest must have."""
        from dmcopy.vm.disks import parse_disk

        return [parse_disk(text) for text in self.disks]

    def takes_kernel(self, version: tuple[int, int]) -> bool:
        """Whether a kernel is one of those that the test is for."""
        return all(compare(version, wanted) for compare, wanted in self._conditions())

    def _conditions(
        self, item: pytest.Item | None = None
    ) -> list[tuple[Callable[[Any, Any], bool], tuple[int, int]]]:
        found = []
        for word in filter(None, (word.strip() for word in self.kernel.split(","))):
            match = _VERSION.fullmatch(word)
            if match is None:
                raise _wrong(item, f"kernel={word!r}: write it as '>=6.1' or '>=6.1,<6.12'")
            found.append((_COMPARE[match[1]], (int(match[2]), int(match[3]))))
        return found

    def _disks(self, item: pytest.Item) -> None:
        from_text = self.vm_disks if self.disks else list
        try:
            from_text()
        except Exception as error:
            raise _wrong(item, str(error)) from None


def lacking(needs: Needs, place: str) -> str:
    """Return what a place lacks for a test, "" if nothing. `place`: model, host or vm.

    For vm this is asked within the guest.
    """
    if needs.root and os.geteuid() != 0:
        return "not root"
    if place == "model":
        return _model_lacks(needs)
    reason = missing_here()
    if reason:
        return reason
    version = release_version(os.uname().release)
    if not needs.takes_kernel(version):
        return f"the kernel is {version[0]}.{version[1]}, and the test is for {needs.kernel}"
    missing = [name for name in needs.targets if not _has_target(name)]
    if missing:
        return f"the kernel {os.uname().release} has no target {', '.join(missing)}"
    if place == "vm":
        return ""
    return "" if os.path.exists("/dev/loop-control") else "no loop devices (modprobe loop)"


@functools.cache
def missing_here() -> str:
    """Return what this machine lacks for tests of the kernel's device-mapper; "" if nothing."""
    if os.geteuid() != 0:
        return "not root"
    from dmcopy.block import tools

    if tools.which("dmsetup") is None:
        return "no dmsetup (apt-get install dmsetup)"
    done = tools.run(["dmsetup", "version"], timeout=60)
    if done.returncode:
        return f"no device-mapper in the kernel {os.uname().release}"
    return ""


def release_version(release: str) -> tuple[int, int]:
    """Return the first two numbers of a kernel release."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _model_lacks(needs: Needs) -> str:
    from dmcopy.targets import TARGETS

    missing = [name for name in needs.targets if TARGETS.find(name) is None]
    if missing:
        return f"the model has no target {', '.join(missing)}"
    if not needs.takes_kernel(MODEL_KERNEL):
        return f"the model does as kernel 6.12, and the test is for {needs.kernel}"
    return ""


@functools.cache
def _has_target(name: str) -> bool:
    """Whether the kernel has a target, or a module for it, which is loaded as a table would."""
    from dmcopy.block import tools
    from dmcopy.mapper.kernel import KernelMapper

    if name in KernelMapper().targets():
        return True
    if tools.which("modprobe") is not None:
        tools.run(["modprobe", "--quiet", f"dm-{name}"], timeout=60)
    return name in KernelMapper().targets()


def _words(item: pytest.Item, name: str, value: object) -> Iterable[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _wrong(item, f"{name}={value!r}: write a list")
    return [str(word) for word in value]


def _wrong(item: pytest.Item | None, what: str) -> pytest.UsageError:
    where = "" if item is None else f"{item.nodeid}: "
    return pytest.UsageError(f"{where}the mark dm is wrong: {what}")
