"""Userspace targets: the kernel's, by their kernel names, on dmcopy's own engine."""

from dmcopy.targets import error, linear, merge, origin, snapshot, striped, zero
from dmcopy.targets.base import TARGETS, Bio, Host, Map, Target, TargetError

__all__ = [
    "TARGETS",
    "Bio",
    "Host",
    "Map",
    "Target",
    "TargetError",
    "error",
    "linear",
    "merge",
    "origin",
    "snapshot",
    "striped",
    "zero",
]
