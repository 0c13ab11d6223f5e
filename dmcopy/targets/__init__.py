"""Userspace targets: the kernel's, by their kernel names, on dmcopy's own engine."""

from dmcopy.targets.base import TARGETS, Bio, Host, Map, Target, TargetError

__all__ = ["TARGETS", "Bio", "Host", "Map", "Target", "TargetError"]
