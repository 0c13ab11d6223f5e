"""Which ranges each destination has, as a map and its companion of the same copy say."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dmcopy.errors import UsageError
from dmcopy.ranges import RangeSet
from dmcopy.transfer.state import DestState, Endpoint, TransferState
from dmcopy.units import format_sectors


@dataclass(frozen=True)
class Matching:
    """A copy from `source` to `dests` that is to resume by the map `path`.

    `created`: the destinations that are new, and so have nothing. `trust`: what the map calls done,
    every destination has. Every method raises UsageError.
    """

    path: str
    source: Endpoint | None
    dests: Sequence[Endpoint]
    count: int
    created: Collection[str] = ()
    trust: bool = False

    def without_states(self, done: RangeSet) -> list[RangeSet]:
        """Return what each destination has where a map is all that there is."""
        if done and not self.trust:
            raise UsageError(
                f"{self.path} has no {self.path}.dests beside it, which would say where the "
                f"{format_sectors(done.total())} are that it calls done: give --trust-map if all "
                f"destinations have them, else another --map"
            )
        return [RangeSet() if self._is_new(dest) else done for dest in self.dests]

    def with_states(self, found: TransferState, done: RangeSet) -> list[RangeSet]:
        """Return what each destination has, in whatever order they are given this time."""
        self._check_source(found)
        foreign = _unknown(done, found)
        if foreign and not self.trust:
            raise UsageError(
                f"another program continued with {self.path}, and it does not say where the "
                f"{format_sectors(foreign.total())} are that it rescued: give --trust-map if all "
                f"destinations have them, else another --map"
            )
        return self._had(found.destinations, done, foreign)

    def _check_source(self, found: TransferState) -> None:
        """Refuse the state of a copy of another source, or of another range of it."""
        before, now = found.source, self.source
        starts = [None if one is None else one.start for one in (before, now)]
        here = found.count == self.count and starts[0] == starts[1]
        if before is None or now is None:
            what = f"a copy of {before.path if before else 'zeroes'}"
            what = "" if before is now and here else what
        elif not self.trust and not before.identity.is_of(now.identity):
            what = f"a copy of {before.path}"
            if doubt := before.identity.doubt_about(now.identity):
                raise UsageError(self._doubtful(what, before, now, doubt))
            if before.path == now.path:
                what += ", which was another file or device of this name"
        elif before.sectors != now.sectors:
            what = f"{before.path} when it had {before.sectors} sectors"
        else:
            what = "" if here else f"sectors {before.start}+{found.count} of {before.path}"
        if what:
            raise UsageError(f"{self.path} is the map of {what}: give another --map for this copy")

    def _had(
        self, states: Sequence[DestState], done: RangeSet, foreign: RangeSet
    ) -> list[RangeSet]:
        left = list(states)
        had: dict[int, RangeSet] = {}
        # The new ones last: a state of their name may be another's, which was renamed.
        for index in sorted(range(len(self.dests)), key=lambda i: self._is_new(self.dests[i])):
            now = self.dests[index]
            named = next((known for known in left if known.place.path == now.path), None)
            same = next((known for known in left if known.is_of(now)), None)
            if self._is_new(now) and (named or self.trust):
                same, had[index] = named, RangeSet()
            elif same is not None:
                had[index] = RangeSet([*same.written, *foreign])
            elif self.trust:
                same, had[index] = named, done
            else:
                raise UsageError(self._unlike(now, named, states))
            if same is not None:
                left.remove(same)
        if left and not self.trust:
            raise UsageError(
                f"{self.path} is the map of a copy that also goes to {left[0].place.path}: give "
                f"the same destinations, or another --map"
            )
        return [has for _, has in sorted(had.items())]

    def _is_new(self, place: Endpoint) -> bool:
        return place.path in self.created

    def _doubtful(self, what: str, before: Endpoint, now: Endpoint, doubt: str) -> str:
        return (
            f"{self.path} is the map of {what}, and {now.path} may be another one than "
            f"{before.path} was, since {doubt}: give --trust-map if it is the same, else another "
            f"--map"
        )

    def _unlike(self, now: Endpoint, named: DestState | None, states: Sequence[DestState]) -> str:
        """Say why a destination is none of those that the map is about."""
        what = f"a copy to {', '.join(known.place.path for known in states)}"
        like = named or next((known for known in states if known.place.fits(now)), None)
        doubt = like.place.identity.doubt_about(now.identity) if like else ""
        if like and doubt and like.place.fits(now):
            return self._doubtful(what, like.place, now, doubt)
        why = ""
        if named is not None:
            why = " (its size or the place in it was another)"
            if named.place.fits(now):
                why = " (that was another file or device of this name)"
        return (
            f"{self.path} is the map of {what}, not to {now.path} as it is now{why}: give another "
            f"--map, or remove this one to begin again"
        )


def _unknown(done: RangeSet, found: TransferState) -> RangeSet:
    """Return what a map calls done and no destination is known to have."""
    known = RangeSet(pair for state in found.destinations for pair in state.written)
    for state in found.destinations:
        known.add(state.count, found.count)
    return RangeSet(gap for start, end in done for gap in known.gaps(start, end))
