"""`dmcopy write-log`: logs of writes, the kernel's, QEMU's and ours, and disks made of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from dmcopy.cli.options import resolve, seeds_range
from dmcopy.cli.output import add_json, emit_json, emit_table, printable, say
from dmcopy.cli.parser import positive
from dmcopy.errors import ExitCode, UsageError
from dmcopy.units import format_sectors

if TYPE_CHECKING:
    from dmcopy.testing.logfile import LogFile, Logged, Selection
    from dmcopy.testing.replay import Replay, State

_EXAMPLES: Final = """\
examples:
  dmcopy write-log info writes.log                        how many writes, flushes, marks
  dmcopy write-log dump --limit 20 writes.log             an entry a line
  dmcopy write-log replay writes.log disk.img --end-mark before
  dmcopy write-log check writes.log                       whether the log is sound
  dmcopy write-log check writes.log disk.img --at flush --fsck 'fsck.ext4 -fy {}'
  dmcopy write-log check writes.log disk.img --seeds 0-9 --fsck 'fsck.ext4 -fy {}'

LOG is a log of dm-log-writes, of QEMU's blklogwrites, or of 'dmcopy disk serve --log'. A replay
begins with DISK as it was when the log began; a discard zeroes. The options that select entries and
sectors are those of fstests' replay-log: entries begin with --start-entry or behind --start-mark,
and end with the first that one of the others names.

'check --fsck' runs CMD where --at says: it gets a copy of the disk for {}, which it may change, or
names the disk itself, and should then change nothing. With --seeds it is also run on what a power
cut there may leave: without the writes behind the last flush, without any one of a few, and with
each lost, kept or torn by sector, as a seed says. The first CMD that fails ends the replay with 4;
DISK is then as CMD saw it.

Ends with 0 for a sound log, and with 4 for what is no log or is damaged, with the byte named, and
for a disk that CMD finds fault with.
"""
_KINDS: Final = ("mark", "flush", "fua", "discard")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    info = verbs.add_parser("info", help="what the log has, and how large its disk must be")
    info.set_defaults(verb=_info)
    dump = verbs.add_parser("dump", help="list the entries")
    dump.add_argument(
        "--find", action="store_true", help="only the last of them, which is the one asked for"
    )
    dump.set_defaults(verb=_dump)
    replay = verbs.add_parser("replay", help="write to a disk what the log says was written")
    replay.set_defaults(verb=_replay)
    check = verbs.add_parser("check", help="check the log, and with --fsck each state of the disk")
    check.add_argument("--fsck", metavar="CMD", help="ends with 0 for a sound disk")
    check.add_argument(
        "--at",
        "--check",
        type=_at,
        metavar="N|mark|flush|fua|discard",
        help="run CMD behind every Nth entry, or each of that kind (default: flush)",
    )
    check.add_argument(
        "--seeds",
        type=seeds_range,
        metavar="A-B",
        help="there also run CMD on what power cuts may leave, one for each seed",
    )
    check.add_argument(
        "--fsck-timeout", type=float, metavar="S", help="what CMD may take (default: 600)"
    )
    check.set_defaults(verb=_check)
    for verb in (info, dump, replay, check):
        verb.add_argument("log", metavar="LOG", help="the device or file with the log")
        add_json(verb, verb=True)
    replay.add_argument("disk", metavar="DISK", help="is written to: a device or a file")
    check.add_argument("disk", nargs="?", metavar="DISK", help="with --fsck: is written to")
    for verb in (dump, replay, check):
        _add_selection(verb)
    for verb in (replay, check):
        _add_part(verb)
    add_json(parser)


def _add_selection(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("which entries")
    group.add_argument("--start-entry", type=int, default=0, metavar="N", help="begin with entry N")
    group.add_argument("--start-mark", metavar="TEXT", help="begin behind the mark TEXT")
    group.add_argument("--limit", type=positive, metavar="N", help="N entries at most")
    group.add_argument("--next-flush", action="store_true", help="up to the next flush")
    group.add_argument("--next-fua", action="store_true", help="up to the next FUA write")
    group.add_argument("--end-mark", metavar="TEXT", help="up to the mark TEXT")


def _add_part(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("what is written")
    group.add_argument("--no-discard", action="store_true", help="leave discards out")
    group.add_argument("--start-sector", type=int, default=0, metavar="S", help="only what is at S")
    group.add_argument("--end-sector", type=int, metavar="S", help="or behind it, up to this one")
    verb.add_argument("--dry-run", action="store_true", help="check, and say what would be written")


def _at(text: str) -> str:
    return text if text in _KINDS else str(positive(text))


def run(args: argparse.Namespace) -> int:
    code: int = args.verb(args)
    return code


def _open(args: argparse.Namespace) -> LogFile:
    from dmcopy.testing.logfile import LogFile

    return LogFile(resolve(args.log))


def _selection(args: argparse.Namespace) -> Selection:
    from dmcopy.testing.logfile import Selection

    if args.start_entry and args.start_mark is not None:
        raise UsageError("--start-entry and --start-mark both say where to begin: give one")
    return Selection(
        args.start_entry,
        args.start_mark,
        args.limit,
        args.next_flush,
        args.next_fua,
        args.end_mark,
    )


def _info(args: argparse.Namespace) -> int:
    from dmcopy.testing.logfile import is_end

    with _open(args) as log:
        facts = {
            "block_size": log.block_size,
            "nr_entries": log.nr_entries,
            **dict.fromkeys(("writes", "flushes", "fua", "discards", "marks"), 0),
            "sectors_written": 0,
            "least_sectors": 0,
            "ended": False,
        }
        for logged in log.entries():
            kind, entry = _kind(logged), logged.entry
            count = entry.nr_sectors * log.block_sectors
            plural = {"write": "writes", "flush": "flushes", "discard": "discards"}
            facts[plural.get(kind.removesuffix(" fua"), "marks")] += 1
            facts["fua"] += kind == "write fua"
            facts["sectors_written"] += count if kind.startswith("write") else 0
            end = entry.sector * log.block_sectors + count
            facts["least_sectors"] = max(facts["least_sectors"], end if count else 0)
            facts["ended"] = is_end(entry)
    if args.json:
        emit_json(facts)
        return ExitCode.OK
    print(f"entries:     {facts['nr_entries']}, in units of {facts['block_size']} bytes")
    size = format_sectors(facts["sectors_written"])
    print(f"writes:      {facts['writes']} of {size}, {facts['fua']} of them FUA")
    print(f"flushes:     {facts['flushes']}")
    print(f"discards:    {facts['discards']}")
    print(f"marks:       {facts['marks']}{', the end among them' if facts['ended'] else ''}")
    print(f"the disk:    {format_sectors(facts['least_sectors'])} or more")
    return ExitCode.OK


def _kind(logged: Logged) -> str:
    from dmcopy.ondisk.write_log import LogFlag

    flags = logged.entry.flags
    for flag, kind in ((LogFlag.MARK, "mark"), (LogFlag.DISCARD, "discard")):
        if flags & flag:
            return kind
    if not logged.entry.nr_sectors:
        return "flush"
    return "write fua" if flags & LogFlag.FUA else "write"


def _dump(args: argparse.Namespace) -> int:
    selection = _selection(args)
    with _open(args) as log:
        found = selection.of(log)
        if args.find and not found:
            raise UsageError(f"{log.path} has no entry {args.start_entry}")
        facts = [_facts(one, log.block_sectors) for one in (found[-1:] if args.find else found)]
    if args.json:
        emit_json({"entries": facts})
        return ExitCode.OK
    rows = []
    for one in facts:
        place = [str(one["sector"]), str(one["count"])] if one["count"] else ["", ""]
        rows.append([str(one["number"]), one["kind"], *place, one.get("text", "")])
    headers = ["ENTRY", "KIND", "SECTOR", "COUNT", "TEXT"]
    emit_table(headers, rows, right=["ENTRY", "SECTOR", "COUNT"])
    return ExitCode.OK


def _facts(logged: Logged, unit: int) -> dict[str, Any]:
    number, entry, at = logged
    place = {"sector": entry.sector * unit, "count": entry.nr_sectors * unit, "at": at}
    text = {"text": os.fsdecode(entry.text)} if entry.text else {}
    return {"number": number, "kind": _kind(logged), **place, **text}


def _plan(args: argparse.Namespace, log: LogFile) -> Replay:
    from dmcopy.testing.replay import Replay, ReplayRange

    first, last = args.start_sector, args.end_sector
    if first < 0 or (last is not None and last < first):
        raise UsageError(
            f"there are no sectors from {first} up to {'the end' if last is None else last}"
        )
    # As for fstests' replay-log, --end-sector is the last one.
    part = ReplayRange(first, None if last is None else last + 1, not args.no_discard)
    return Replay(log, resolve(args.disk), _selection(args).of(log), part)


def _replay(args: argparse.Namespace) -> int:
    with _open(args) as log:
        replay = _plan(args, log)
        if not args.dry_run:
            for _ in replay.run():
                pass
        return _tell(args, replay)


def _tell(args: argparse.Namespace, replay: Replay, **more: Any) -> int:
    last = replay.entries[-1].number if replay.entries else None
    facts = {"disk": args.disk, "entries": len(replay.entries), "last": last}
    if args.json:
        rehearsal = {"dry_run": True} if args.dry_run else {}
        emit_json({**rehearsal, **facts, "sectors": replay.sectors, **more})
    else:
        would = "would write" if args.dry_run else "wrote"
        upto = "" if last is None else f", the last is entry {last}"
        size = format_sectors(replay.sectors)
        print(f"{would} {size} to {printable(args.disk)}: {len(replay.entries)} entries{upto}")
    return ExitCode.OK


def _check(args: argparse.Namespace) -> int:
    with _open(args) as log:
        if args.fsck is None:
            return _check_log(args, log)
        from dmcopy.testing.fsck import SECONDS, Fsck

        if args.disk is None:
            raise UsageError("--fsck needs a DISK to write the log to")
        timeout = SECONDS if args.fsck_timeout is None else args.fsck_timeout
        fsck = Fsck(args.fsck, timeout=timeout)
        replay = _plan(args, log)
        at = _point(args.at or "flush", replay)
        if args.dry_run:
            checks = sum(at(one) for one in replay.entries) * (
                2 + len(args.seeds) if args.seeds else 1
            )
            return _tell(args, replay, checks=checks)
        return _check_states(args, replay, at, fsck)


def _check_log(args: argparse.Namespace, log: LogFile) -> int:
    """Look at the log alone, and whether it fits the disk, if there is one."""
    if args.at is not None or args.seeds is not None:
        raise UsageError("--at and --seeds say when to run CMD: give them with --fsck")
    if args.disk is not None:
        _plan(args, log)
    number = sum(1 for _ in log.entries())
    if args.json:
        emit_json({"log": log.path, "entries": number, "sound": True})
    else:
        say(f"{printable(log.path)}: sound, {number} entries")
    return ExitCode.OK


def _point(at: str, replay: Replay) -> Callable[[Logged], bool]:
    """Return whether CMD is to be run behind an entry."""
    from dmcopy.ondisk.write_log import LogFlag

    if at in _KINDS:
        flag = LogFlag[at.upper()]
        return lambda logged: bool(logged.entry.flags & flag)
    first = replay.entries[0].number if replay.entries else 0
    return lambda logged: (logged.number - first + 1) % int(at) == 0


def _check_states(
    args: argparse.Namespace, replay: Replay, at: Callable[[Logged], bool], fsck: Any
) -> int:
    from dmcopy.testing.replay import State

    checks = 0
    for state in replay.states(at, args.seeds) if args.seeds else map(State, replay.run(at)):
        checks += 1
        verdict = fsck.judge(resolve(args.disk))
        if verdict.code:
            return _found(args, state, checks, verdict)
    if args.json:
        emit_json({"disk": args.disk, "checks": checks, "failed": None})
    else:
        print(f"{printable(args.disk)}: sound at all of {checks} points")
    return ExitCode.OK


def _found(args: argparse.Namespace, state: State, checks: int, verdict: Any) -> int:
    logged = state.logged
    failed = {"entry": logged.number, "kind": _kind(logged), "code": verdict.code}
    if state.kept:
        failed |= {"seed": state.seed, "undone": _undone(state)}
    if args.json:
        text = {"output": verdict.output}
        emit_json({"disk": args.disk, "checks": checks, "failed": failed | text})
        return ExitCode.MISMATCH
    if verdict.output:
        say("\n".join(printable(line) for line in verdict.output.splitlines()))
    place, again = f"behind entry {logged.number} ({failed['kind']})", ""
    if state.kept:
        place = f"after a power cut at entry {logged.number} ({failed['kind']}), {_words(state)},"
    if state.seed is not None:
        again = f"'--seeds {state.seed}' tries this one again, "
    say(
        f"dmcopy: {printable(args.disk)}: {place} the command ended with {verdict.code}; the disk "
        f"is as it was there, {again}and 'dmcopy write-log replay --limit {logged.number + 1}' "
        f"makes another so that is as this one was at the beginning"
    )
    return ExitCode.MISMATCH


def _undone(state: State) -> list[dict[str, Any]]:
    """Return which entries a power cut undid, and which of their sectors stayed."""
    return [
        {"entry": entry, "kept": [bit for bit in range(bits.bit_length()) if bits >> bit & 1]}
        for entry, bits in state.kept.items()
    ]


def _words(state: State) -> str:
    lost = [str(entry) for entry, bits in state.kept.items() if not bits]
    said = [f"without entry {' and '.join(lost)}"] if lost else []
    for one in _undone(state):
        if one["kept"]:
            said.append(f"of entry {one['entry']} only sectors {one['kept']}")
    return ", ".join(said)
