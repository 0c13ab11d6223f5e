"""`dmcopy devices`: find block devices, watch them, and name who holds one."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Final

from dmcopy.cli.output import add_json, emit_json, emit_json_line, emit_table, printable, say
from dmcopy.cli.parser import seconds
from dmcopy.cli.streams import is_heard
from dmcopy.units import SECTOR_SIZE, format_bytes

if TYPE_CHECKING:
    from dmcopy.block.info import DeviceInfo
    from dmcopy.block.watch import Uevent

_EXAMPLES: Final = """\
examples:
  dmcopy devices                        all devices that have a medium
  dmcopy devices who /dev/sdb           why it is busy
  dmcopy devices who UUID=0a1b-2c3d     by serial, UUID, label, dm name or 8:16, too
  dmcopy devices watch --timeout 60     what comes, changes and goes in the next minute
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs; without one, `list`."""
    parser.epilog = _EXAMPLES
    add_json(parser)
    parser.set_defaults(verb=_list, all=False)
    verbs = parser.add_subparsers(metavar="VERB")

    listing = verbs.add_parser("list", help="list the devices (the default)")
    listing.add_argument("--all", action="store_true", help="also those without a medium")
    listing.set_defaults(verb=_list)

    watching = verbs.add_parser("watch", help="print each device that comes, changes or goes")
    watching.add_argument(
        "--timeout", type=seconds, metavar="S", help="stop after S seconds (default: never)"
    )
    watching.set_defaults(verb=_watch)

    asking = verbs.add_parser("who", help="say what uses a device or file")
    asking.add_argument(
        "device", metavar="DEV", help="node, serial, UUID, dm name, 8:16, or a file"
    )
    asking.set_defaults(verb=_who)
    for verb in (listing, watching, asking):
        add_json(verb, verb=True)


def run(args: argparse.Namespace) -> int:
    code: int = args.verb(args)
    return code


def _list(args: argparse.Namespace) -> int:
    from dmcopy.block.discovery import list_devices

    devices = list_devices(empty=args.all)
    if args.json:
        emit_json([device.as_dict() for device in devices])
    else:
        headers = ["DEVICE", "SIZE", "TYPE", "CONTENT", "UUID", "SERIAL", "USED BY"]
        emit_table(headers, [_row(device) for device in devices], right=["SIZE"])
    return 0


def _row(device: DeviceInfo) -> list[str]:
    content = " ".join(filter(None, [device.fstype, device.label]))
    kind = f"{device.type} (read-only)" if device.read_only else device.type
    alias = device.dm_name or device.backing_file
    name = f"{device.node} ({alias})" if alias else device.node
    used = ", ".join([*device.mounts, *device.holders])
    return [name, _size(device), kind, content, device.uuid, device.serial, used]


def _size(device: DeviceInfo) -> str:
    return format_bytes(device.sectors * SECTOR_SIZE)


def _watch(args: argparse.Namespace) -> int:
    from dmcopy.block.watch import watch

    with watch(args.timeout) as events:
        say(f"watching for {events.source} events")
        for event in events:
            _print_event(event, as_json=args.json)
            if not is_heard():
                break
    return 0


def _print_event(event: Uevent, *, as_json: bool) -> None:
    device = event.device
    if as_json:
        emit_json_line(
            {"action": event.action, "relisted": event.relisted, "device": device.as_dict()}
        )
    else:
        note = "  (found by listing again)" if event.relisted else ""
        print(f"{event.action:6}  {printable(device.node)}  {_size(device)}{note}", flush=True)


def _who(args: argparse.Namespace) -> int:
    from dmcopy.block.discovery import find
    from dmcopy.block.holders import who

    path = args.device if os.path.exists(args.device) else find(args.device).node
    found = who(path)
    if args.json:
        emit_json([holder._asdict() | {"text": str(holder)} for holder in found])
        return 0
    for holder in found:
        print(printable(str(holder)))
    if not found:
        say(f"nothing uses {path}" + ("" if os.geteuid() == 0 else ", as far as non-root can see"))
    return 0
