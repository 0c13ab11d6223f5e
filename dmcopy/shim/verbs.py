"""dmsetup's verbs that change devices, with its messages and its order of things.

Each is a function of the call and the words behind the verb; it returns whether it was done.
"""

from __future__ import annotations

import errno
import sys

from dmcopy.mangling import mangle, unmangle
from dmcopy.shim import show
from dmcopy.shim.devices import Info, Refused
from dmcopy.shim.words import atoi, strtoull

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcopy.shim.call import Call

_FIELDS = ("name", "uuid", "minor", "flags", "table")
_MAX_NAME = 127
_MAX_UUID = 128
RETRY_SECONDS = 5.0
"""How long `remove --retry` tries (25 times every fifth of a second, in libdm)."""


def create(call: Call, words: list[str]) -> bool:
    if "concise" in call.words:
        return _concise(call, words)
    if not words:
        return call.fail("Please provide a name for the new device.")
    uuid = call.words.value("uuid") or ""
    return _create(call, words[0], words[1:], uuid, readonly="readonly" in call.words)


def _create(
    call: Call, word: str, files: list[str], uuid: str, *, readonly: bool, text: str | None = None
) -> bool:
    if "/" in word:
        return call.fail(f"Name \"{word}\" invalid. It contains \"/\".")  # fmt: skip
    name = unmangle(word)
    if wrong := _too_long(word, uuid):
        return call.fail(wrong)
    table = None
    if "notable" not in call.words:
        table = _table(call, files, call.words.value("table") if text is None else text)
        if table is None:
            return False
    infos = call.devices.infos()
    if any(name == info.name or (uuid and uuid == info.uuid) for info in infos):
        return call.refused("create", word, Refused(errno.EBUSY))
    if name in ("", ".", ".."):  # check_name in dm-ioctl.c, of 6.12; no file can be called so
        return call.refused("create", word, Refused(errno.EINVAL))
    try:
        call.devices.create(name, table or None, uuid=uuid, readonly=readonly)
    except Refused as error:
        return call.refused("reload", word, error)
    return _told(call, name)


def _too_long(name: str, uuid: str) -> str:
    """Return dmsetup's error for a word longer than the kernel's structures, "" if none is."""
    if len(mangle(name)) > _MAX_NAME:
        return f"Name \"{name}\" too long."  # fmt: skip
    if len(mangle(uuid)) > _MAX_UUID:
        said = f"Mangled form of the UUID too long for \"{uuid}\".\n"  # fmt: skip
        return said + f"Failed to mangle device uuid \"{uuid}\"."  # fmt: skip
    return ""


def _concise(call: Call, words: list[str]) -> bool:
    if any(name in call.words for name in ("table", "minor", "uuid", "notable", "inactive")):
        return call.fail(
            "--concise is incompatible with --[no]table, --minor, --uuid and --inactive."
        )
    if len(words) > 1:
        return call.fail("dmsetup create --concise takes at most one argument")
    text = words[0] if words else sys.stdin.read()
    for fields in concise(text.rstrip("\n")):
        if len(fields) != 5:
            call.note("Five comma-separated fields are required for each device")
            named = zip(_FIELDS, [*fields, *["(null)"] * 5], strict=False)
            text = " ".join(f"{name}: {value}" for name, value in named)
            return call.fail(f"Parsed {len(fields)} fields: {text}")
        name, uuid, _minor, flags, table = fields
        if flags not in ("", "ro", "rw"):
            return call.fail(
                f"Invalid flags parameter '{flags}' must be 'ro' or 'rw' or empty."
            )  # fmt: skip
        if not _create(call, name, [], uuid, readonly=flags == "ro", text=table):
            return False
    return True


def concise(text: str) -> list[list[str]]:
    """Return the fields of each device of a concise specification, the table's lines as lines."""
    devices: list[list[str]] = [[""]]
    place = 0
    while place < len(text):
        letter = text[place]
        fields = devices[-1]
        place += 1
        if letter == "\\" and place < len(text):
            fields[-1] += text[place]
            place += 1
        elif letter == ";":
            devices.append([""])
        elif letter == ",":
            if len(fields) < 5:
                fields.append("")
            else:
                fields[-1] += "\n"
        elif not (letter.isspace() and fields[-1] == "" and len(fields) < 5):
            fields[-1] += letter
    return [fields for fields in devices if fields != [""]]


def _table(call: Call, files: list[str], text: str | None) -> str | None:
    """Return a table, without comments; None when it was said what is wrong with it."""
    where = ""
    if text is None and files:
        where = files[0]
        try:
            with open(where, errors="surrogateescape") as stream:
                text = stream.read()
        except OSError:
            call.fail(f"Couldn't open '{where}' for reading.")
            return None
    elif text is None:
        where, text = "on stdin", sys.stdin.read()
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        words = line.partition("#")[0].split()
        if len(words) < 3 or not (words[0].isdecimal() and words[1].isdecimal()):
            call.fail(f"Invalid format on line {number} of table {where}.")
            return None
        lines.append(" ".join(words))
    return "\n".join(lines)


def load(call: Call, words: list[str]) -> bool:
    """Load a table beside the active one."""
    if "notable" in call.words:
        return call.fail("--notable only available when creating new device.")
    words = list(words)
    if not call.addressed and not words:
        return call.fail("Please specify device.")
    word = None if call.addressed else words.pop(0)
    if len(words) > 1:
        return call.fail("Too many command line arguments.")
    table = _table(call, words, call.words.value("table"))
    if table is None:
        return False
    readonly = "readonly" in call.words
    found = _do(
        call, "reload", word, lambda name: call.devices.load(name, table, readonly=readonly)
    )
    return found is not None and _told(call, found.name)


def clear(call: Call, words: list[str]) -> bool:
    """Drop the loaded table."""
    found = _do(call, "clear", _first(words), call.devices.clear)
    return found is not None and _told(call, found.name)


def suspend(call: Call, words: list[str]) -> bool:
    flush, lockfs = "noflush" not in call.words, "nolockfs" not in call.words
    found = _do(
        call,
        "suspend",
        _first(words),
        lambda name: call.devices.suspend(name, flush=flush, lockfs=lockfs),
    )
    return found is not None and _told(call, found.name)


def resume(call: Call, words: list[str]) -> bool:
    found = _resume(call, _first(words))
    return found is not None and _told(call, found.name)


def _resume(call: Call, word: str | None) -> Info | None:
    flush, lockfs = "noflush" not in call.words, "nolockfs" not in call.words
    return _do(
        call, "resume", word, lambda name: call.devices.resume(name, flush=flush, lockfs=lockfs)
    )


def remove(call: Call, words: list[str]) -> bool:
    """Remove a device; with --force, its I/O fails first."""
    word = _first(words)
    if "force" in call.words and words:
        wipe_table(call, words)
    deferred = "deferred" in call.words
    deadline = call.now() + (RETRY_SECONDS if "retry" in call.words else 0.0)
    while True:
        try:
            found = call.find(word, "remove")
            if found is None:
                return False
            call.devices.remove(found.name, deferred=deferred)
            return True
        except Refused as error:
            if error.errno != errno.EBUSY or call.now() >= deadline:
                return call.refused("remove", word, error)
        call.sleep(0.2)


def remove_all(call: Call, words: list[str]) -> bool:
    """Remove what is not in use: all devices are the server's own."""
    del words
    for force in (False, True) if "force" in call.words else (False,):
        left = call.devices.infos()
        if force:
            for info in left:
                wipe_table(call, [info.name])
        while left:  # those that others stand on go when these have gone
            gone = [info for info in left if _is_removed(call, info.name)]
            if not gone:
                break
            left = [info for info in left if info not in gone]
    if left and "force" in call.words:
        call.fail(f"Unable to remove {len(left)} device(s).")
    return True


def _is_removed(call: Call, name: str) -> bool:
    try:
        call.devices.remove(name, deferred="deferred" in call.words)
    except Refused:
        return False
    return True


def wipe_table(call: Call, words: list[str]) -> bool:
    """Put a table into place that fails all I/O."""
    if not words:
        return call.fail("No device specified.")
    info = call.find(words[0], "table")
    length = 0 if info is None else show.length(call, info)
    if call.find(words[0], "reload") is None:
        return False
    table = f"0 {length} error"
    readonly = "readonly" in call.words
    done = _do(
        call, "reload", words[0], lambda name: call.devices.load(name, table, readonly=readonly)
    )
    if done is None:
        return False
    if "force" in call.words:
        call.words.counts.update(nolockfs=1, noflush=1)
    if _resume(call, words[0]) is None:
        _do(call, "clear", words[0], call.devices.clear)
        return False
    return True


def rename(call: Call, words: list[str]) -> bool:
    """Give a device another name, or its first UUID."""
    new = words[-1]
    word = words[0] if len(words) == 2 else None
    if not new and "setuuid" not in call.words:
        return call.fail("Non empty new name is required.")
    if call.addressed:  # the kernel looks for it by its name only: dm_hash_rename in dm-ioctl.c
        return call.refused("rename", word, Refused(errno.ENXIO))
    if "setuuid" in call.words:
        return _do(call, "rename", word, lambda name: call.devices.set_uuid(name, new)) is not None
    if "/" in new:
        return call.fail(f"Name \"{new}\" invalid. It contains \"/\".")  # fmt: skip
    to = unmangle(new)
    if word is not None and any(info.name == to for info in call.devices.infos()):
        return call.refused("rename", word, Refused(errno.EBUSY))
    return _do(call, "rename", word, lambda name: call.devices.rename(name, to)) is not None


def message(call: Call, words: list[str]) -> bool:
    """Send words to a target."""
    words = list(words)
    word = None if call.addressed else words.pop(0)
    if not words or not words[0].isdecimal():
        return call.fail("Invalid sector.")
    sector, text = strtoull(words[0]), " ".join(words[1:])
    if len(words) == 1:
        call.note("No message supplied.")
    answers: list[str] = []
    found = _do(
        call,
        "message",
        word,
        lambda name: answers.append(call.devices.message(name, sector, text)),
    )
    for answer in filter(None, answers):
        call.say(answer.removesuffix("\n"))
    return found is not None


def wait(call: Call, words: list[str]) -> bool:
    words = list(words)
    if not call.addressed and not words:
        return call.fail("No device specified.")
    word = None if call.addressed else words.pop(0)
    event = atoi(words[-1]) if words else 0
    found = _do(call, "waitevent", word, lambda name: call.devices.wait(name, event))
    return found is not None and _told(call, found.name)


def mknodes(call: Call, words: list[str]) -> bool:
    """See that nodes are there: the server keeps them."""
    del call, words
    return True


def _first(words: list[str]) -> str | None:
    return words[0] if words else None


def _do(call: Call, ioctl: str, word: str | None, action: Callable[[str], object]) -> Info | None:
    """Do something to the device that is meant; return it, None when it was said why not."""
    found = call.find(word, ioctl)
    if found is None:
        return None
    try:
        action(found.name)
    except Refused as error:
        call.refused(ioctl, word, error)
        return None
    return found


def _told(call: Call, name: str) -> bool:
    """With -v, print what is known of a device that was changed."""
    if "verbose" in call.words:
        for info in call.devices.infos():
            if info.name == name:
                show.long(call, info)
    return True
