"""Userspace targets: the kernel's, by their kernel names, on dmcopy's own engine."""

from dmcopy.targets import (
    delay,
    dust,
    error,
    flakey,
    linear,
    log_writes,
    merge,
    mirror,
    origin,
    snapshot,
    striped,
    zero,
)
from dmcopy.targets.base import TARGETS, Bio, Host, Map, Target, TargetError

__all__ = [
    "TARGETS",
    "Bio",
    "Host",
    "Map",
    "Target",
    "TargetError",
    "delay",
    "dust",
    "error",
    "flakey",
    "linear",
    "log_writes",
    "merge",
    "mirror",
    "origin",
    "snapshot",
    "striped",
    "zero",
]
