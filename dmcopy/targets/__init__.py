"""Userspace targets: the kernel's, by their kernel names, on dmcopy's own engine, and yours."""

from dmcopy.targets.base import (
    DONE,
    KILL,
    REMAPPED,
    SUBMITTED,
    TARGETS,
    Bio,
    Host,
    Map,
    Target,
    TargetError,
    register,
)

__all__ = [
    "DONE",
    "KILL",
    "REMAPPED",
    "SUBMITTED",
    "TARGETS",
    "Bio",
    "Host",
    "Map",
    "Target",
    "TargetError",
    "register",
]
