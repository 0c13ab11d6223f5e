"""`dmsetup stats`: of devices whose I/O is not counted, and which have no regions therefore.

What is asked of them is answered as dmsetup answers it of a device without regions; that one is
made is refused. Measured with 1.02.185 on 6.1 and 6.12.
"""

from __future__ import annotations

import errno
import os

from dmcopy.shim import seldom, show
from dmcopy.shim.devices import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dmcopy.shim.call import Call

_NO_DEVICE = "Please specify device(s) or use --alldevices."
_WHY = "the userspace engine counts no I/O, so that there are no regions"


def stats(call: Call, words: list[str]) -> bool:
    """Run the command that the first word says, for each of the others until one fails."""
    name, *operands = words
    if name == "version":
        return show.version(call, [])
    if name not in _COMMANDS:
        if name != "help":
            call.note("Unknown stats command.")
        seldom.usage(call, [])
        return name == "help"
    if wrong := _wrong(call, name, operands):
        return call.fail(wrong)
    do = _COMMANDS[name]
    if operands or call.addressed:
        return all(do(call, word) for word in operands) if operands else do(call, None)
    done = [do(call, info.name) for info in call.devices.infos()]
    return all(done)


def _wrong(call: Call, name: str, operands: list[str]) -> str:
    """Return what dmsetup says of options that do not go together or lack; "" for good ones."""
    given = call.words
    region, group, every = (word in given for word in ("regionid", "groupid", "allregions"))
    if name == "update_filemap":
        return "" if operands else "update_filemap requires a file path argument"
    if name == "create":
        for option in ("allregions", "allprograms"):
            if option in given:
                return f"Cannot use --{option} with create."
        if "areas" in given and "areasize" in given:
            return "Please specify one of --areas and --areasize."
        if given.value("programid") == "" and "force" not in given:
            return "Creating a region with no program id requires --force."
        if "filemap" in given:
            return "" if operands else "--filemap requires a file path argument"
    if name == "delete" and region and group:
        return "Please use one of --regionid and --groupid."
    if name == "delete" and not (region or group or every):
        return "Please specify a --regionid or --groupid, or use --allregions."
    if name in ("clear", "print") and not (region or every):
        return "Please specify a --regionid or use --allregions."
    if name == "group" and "regions" not in given:
        return "Group requires --regions."
    if name == "ungroup" and not group:
        return "Please specify group id."
    needs = name in ("create", "delete", "group", "ungroup")
    missing = needs and not operands and not call.addressed and "alldevices" not in given
    return _NO_DEVICE if missing else ""


def _create(call: Call, word: str | None) -> bool:
    if "filemap" in call.words:
        return _file(call, word)
    info = call.find(word, "table")
    if info is None:
        return False
    call.refused("message", word, Refused(errno.EOPNOTSUPP, _WHY))
    return call.fail(f"{info.name}: Could not create statistics region.")


def _file(call: Call, word: str | None) -> bool:
    if call.words.operands[1] == "update_filemap" and "groupid" not in call.words:
        return call.fail("--groupid is required to update a filemap group.")
    path = word or ""
    if not os.path.exists(path):
        return call.fail(f"Could not canonicalize file name: {path}")
    return call.refused("message", path, Refused(errno.EOPNOTSUPP, _WHY))


def _list(call: Call, word: str | None) -> bool:
    return call.lookup(word) is not None or call.fail("Device does not exist.")


def _print(call: Call, word: str | None) -> bool:
    if call.find(word, "message") is None:
        return False
    if "allregions" in call.words:
        return True
    call.refused("message", word, Refused(errno.ENOENT))
    return call.fail("Could not print statistics region.")


def _clear(call: Call, word: str | None) -> bool:
    return call.find(word, "message") is not None


def _group(call: Call, word: str | None) -> bool:
    info = call.find(word, "message")
    if info is None:
        return False
    call.note("Could not create group: no regions found.")
    return call.fail(f"Could not create group on {info.name}: {call.words.value('regions')}")


def _ungroup(call: Call, word: str | None) -> bool:
    info = call.find(word, "message")
    if info is None:
        return False
    number = call.words.number("groupid")
    call.note(f"Group ID {number} does not exist")
    call.note(f"Could not delete group {number} on {info.name}.")
    call.say(f"Removed group ID {number} on {info.name}")  # it says so all the same
    return False


def _delete(call: Call, word: str | None) -> bool:
    info = call.find(word, "message")
    region = "regionid" in call.words
    number = call.words.number("regionid" if region else "groupid")
    if info is None and region:
        call.note(f"Could not obtain region list while deleting region ID {number}")
    elif info is None or "allregions" in call.words:
        return info is not None
    elif region:
        call.note(f"Could not delete region ID {number}: no regions found")
    else:
        call.note(f"Group ID {number} does not exist")
        return call.fail("Could not delete statistics group.")
    return call.fail("Could not delete statistics region")


_COMMANDS = {
    "clear": _clear,
    "create": _create,
    "delete": _delete,
    "group": _group,
    "list": _list,
    "print": _print,
    "report": _list,
    "ungroup": _ungroup,
    "update_filemap": _file,
}
