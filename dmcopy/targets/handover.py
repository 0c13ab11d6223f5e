"""Handover: a new table for a snapshot gets the exceptions of the table before (dm-snap.c).

Two targets on the same origin and COW are a pair: the *source*, which is active, and the *dest*,
which has not read the store and waits for its resume. That is how a snapshot is resized, or becomes
one that merges.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple

from dmcopy.targets.base import TargetError

if TYPE_CHECKING:
    from dmcopy.targets.origin import Origin
    from dmcopy.targets.snapshot import Snapshot


class Pair(NamedTuple):
    """What there is of a pair on one COW, and how many targets are on it."""

    source: Snapshot | None
    dest: Snapshot | None
    members: int


def find_pair(origin: Origin, cow: Hashable) -> Pair:
    """Return the snapshots of `origin` on the COW of this identity."""
    source = dest = None
    members = 0
    for one in origin.snapshots:
        if one.cow.identity == cow:
            members += 1
            if one.active:
                source = one
            else:
                dest = one
    return Pair(source, dest, members)


def is_due(origin: Origin, new: Snapshot) -> bool:
    """Return whether `new`, not among the snapshots yet, must wait for a handover.

    Raises TargetError where there can be none (__validate_exception_handover).
    """
    pair = find_pair(origin, new.cow.identity)
    if pair.members == 2 or pair.dest is not None:
        raise TargetError("Snapshot cow pairing for exception table handover failed")
    if pair.source is None:
        return False
    if new.is_merge:
        if any(one.is_merge for one in origin.snapshots):
            raise TargetError("A snapshot is already merging.")
        if not pair.source.store.can_merge:
            raise TargetError("Snapshot exception store does not support snapshot-merge.")
    return True


def check_resume(origin: Origin, snapshot: Snapshot) -> None:
    """Raise TargetError where a snapshot cannot run before a handover (snapshot_preresume)."""
    source, dest, _ = find_pair(origin, snapshot.cow.identity)
    if source is None or dest is None:
        return
    if source is snapshot:
        raise TargetError("Unable to resume snapshot source until handover completes.")
    if not source.host.suspended:
        raise TargetError("Unable to perform snapshot handover until source is suspended.")


def take_over(origin: Origin, dest: Snapshot, swap: Callable[[Snapshot], object]) -> None:
    """Call `swap(source)` if `dest` is due to get its exceptions, with all writers held meanwhile.

    The kernel suspends the origin's device, or the one that merges, internally (snapshot_resume).
    """
    source = find_pair(origin, dest.cow.identity).source
    if source is None or source is dest:
        return
    held = [host for host in origin.hosts if host is not dest.host]
    merging = [one for one in origin.snapshots if one.is_merge and one is not dest]
    for one in merging:
        one.stop_merge()
    for host in held:
        host.hold()
    try:
        source.wait_idle()
        swap(source)
    finally:
        for host in held:
            host.release()
        for one in merging:
            one.start_merge()


def cancel(origin: Origin, source: Snapshot) -> None:
    """A source goes away before its handover: the dest has nothing to run with (snapshot_dtr)."""
    pair = find_pair(origin, source.cow.identity)
    if pair.source is source and pair.dest is not None:
        pair.dest.valid = False
