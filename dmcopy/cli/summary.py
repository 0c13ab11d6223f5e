"""The text of a transfer's end, and of --dry-run at its beginning."""

from __future__ import annotations

from typing import Any, Final

from dmcopy.cli.output import emit_json, printable, say
from dmcopy.cli.progress import in_one_unit, speed
from dmcopy.errors import ExitCode
from dmcopy.io.region import IoRegion
from dmcopy.transfer.destination import Destination, FailedRange, errno_name
from dmcopy.transfer.opening import OpenedRegions
from dmcopy.transfer.outcome import TransferOutcome
from dmcopy.transfer.session import TransferOptions
from dmcopy.transfer.settings import Settings
from dmcopy.units import SECTOR_SHIFT, format_bytes, format_sectors

SHOWN_RANGES: Final = 10


def print_summary(outcome: TransferOutcome) -> None:
    """Print one line for each destination on stdout, and what is to be done next on stderr."""
    transfer = outcome.transfer
    for index, dest in enumerate(transfer.dests):
        print(f"{printable(dest.path)}: {_fate(outcome, index, dest)}")
        _print_failed(dest.region, "not written", [*dest.failures])
    if transfer.plan.source is not None:
        _print_failed(transfer.plan.source, "not read", [*transfer.bad, *transfer.unread])
    moved = outcome.moved()
    if any(dest.error for dest in transfer.dests):
        pass  # each has another part of it: there is no one sum to tell
    elif moved:
        print(f"{speed(moved, transfer.seconds)} ({outcome.settings.backend})")
    elif outcome.exit_code == ExitCode.OK:
        print("nothing to do: an earlier run wrote it all")
    for path, reason in outcome.buffered().items():
        print(f"{printable(path)}: through the page cache, since {reason}")
    _advise(outcome)


def _print_failed(whole: IoRegion, what: str, failures: list[FailedRange]) -> None:
    """Print the first failed ranges, as sectors of the device; --json has them all."""
    for failed in sorted(failures)[:SHOWN_RANGES]:
        region = whole.slice(failed.start, failed.end - failed.start)
        print(f"  {printable(str(region))}: {what}, {errno_name(failed.errno)}")
    if len(failures) > SHOWN_RANGES:
        print(f"  and {len(failures) - SHOWN_RANGES} more ranges: --json lists them")


def _fate(outcome: TransferOutcome, index: int, dest: Destination) -> str:
    verified = outcome.verified
    (part, whole), unit = _together(dest.sectors, dest.region.count)
    if dest.error:
        reason = f"{dest.cause}: {errno_name(dest.error)}"
        return f"FAILED ({reason}), {part} of {whole} {unit} written"
    if verified and verified.mismatches[index]:
        return f"DIFFERS in {_size(verified.mismatches[index].total())}"
    if verified and verified.unreadable[index]:
        return f"NOT VERIFIED, {_size(verified.unreadable[index].total())} unreadable"
    if dest.failures:
        (written, failed), unit = _together(dest.sectors, dest.failures.total())
        return f"PARTIAL, {written} {unit} written, {failed} {unit} failed"
    if dest.sectors < dest.region.count:
        return f"INCOMPLETE, {part} of {whole} {unit} written"
    good = "ok, verified" if verified and verified.is_good(index) else "ok"
    return f"{good}, {_size(dest.sectors)} written"


def _size(sectors: int) -> str:
    return format_bytes(sectors << SECTOR_SHIFT)


def _together(*counts: int) -> tuple[list[str], str]:
    return in_one_unit(*(count << SECTOR_SHIFT for count in counts))


def _advise(outcome: TransferOutcome) -> None:
    transfer = outcome.transfer
    if outcome.interrupted:
        kept = sum(dest.durable.total() for dest in transfer.dests)
        again = ""
        if outcome.map_path:
            again = f"; the same command with --map {outcome.map_path} resumes from here"
        elif kept:
            again = f"; --map FILE would have saved {_size(kept)} of it for another run to resume"
        say(f"dmcopy: interrupted{again}")
    elif transfer.source_error:
        path = transfer.plan.source.device.path if transfer.plan.source else ""
        say(
            f"dmcopy: {path} cannot be read ({errno_name(transfer.source_error)}); "
            f"--on-error skip copies all but the bad blocks"
        )
    elif outcome.exit_code == ExitCode.FAILED:
        what = "nothing was written to any destination"
        if not outcome.nothing_written:
            what = "no destination has all of it, see above how much each has"
        again = f"; the same command with --map {outcome.map_path} resumes from there"
        say(f"dmcopy: {what}{again if outcome.map_path else ''}")
    elif outcome.exit_code == ExitCode.PARTIAL:
        say("dmcopy: some destination or block failed; the rest is good")
    elif outcome.exit_code == ExitCode.MISMATCH:
        say("dmcopy: what was read back is not what was written")


def describe_plan(
    opened: OpenedRegions, settings: Settings | None, options: TransferOptions, *, as_json: bool
) -> None:
    """Say what would be done. `settings` is None when every destination is still to be made."""
    over = overwritten(opened)
    facts: dict[str, Any] = {
        "dry_run": True,
        "source": _region(opened.source) if opened.source else None,
        "destinations": [
            {**_region(dest), "overwrites": over.get(dest.device.path)} for dest in opened.dests
        ],
        "to_create": [{"path": path, "sectors": sectors} for path, sectors in opened.missing],
        "on_error": options.on_error,
        "backend": settings.backend if settings else None,
        "piece_sectors": settings.piece if settings else None,
    }
    if as_json:
        emit_json(facts)
        return
    what = f"copy {printable(str(opened.source))}" if opened.source else "zero"
    for dest in opened.dests:
        count = dest.count << SECTOR_SHIFT
        print(f"would {what} {'to ' if opened.source else ''}{dest} ({format_bytes(count)})")
    for path, what in over.items():
        print(f"{printable(path)} would be overwritten: {printable(what)}")
    for path, sectors in opened.missing:
        print(f"would {what} to {printable(path)}, made with {format_sectors(sectors)}")


def overwritten(opened: OpenedRegions) -> dict[str, str]:
    """Return what there is on each destination that was there before, by its path."""
    paths = [dest.device.path for dest in opened.dests if dest.device.path not in opened.created]
    if not paths:
        return {}
    from dmcopy.block.discovery import appearance  # here, as a copy to a new file needs none

    found = {path: appearance(path) for path in paths}
    return {path: what for path, what in found.items() if what}


def _region(region: IoRegion) -> dict[str, Any]:
    return {"path": region.device.path, "sector": region.sector, "count": region.count}
