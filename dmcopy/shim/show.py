"""dmsetup's verbs that only look, and what they print."""

from __future__ import annotations

import errno
import os

from dmcopy.shim.devices import Info, Refused, block_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcopy.shim.call import Call

NONE = "No devices found"
VERSION = "1.02.185 (2022-05-18)"
"""The libdevmapper whose words these are."""
DRIVER = "4.48.0"


def each(call: Call, words: list[str], show: Callable[[Call, Info], bool], ioctl: str) -> bool:
    """Show the device that is meant, or all."""
    if not words and not call.addressed:
        infos = call.devices.infos()
        if not infos:
            call.say(NONE)
        done = [show(call, info) for info in infos]  # each, whatever becomes of another
        return all(done)
    word = words[0] if words else None
    info = call.lookup(word)
    if info is None and ioctl in ("info", "status") and "/" not in (word or ""):
        return call.fail("Device does not exist.")
    info = info or call.find(word, ioctl)
    return info is not None and show(call, info)


def info(call: Call, words: list[str]) -> bool:
    """Show what is known of devices."""
    return each(call, words, long, "info")


def long(call: Call, info: Info) -> bool:
    """Print all that is known of a device."""
    state = "SUSPENDED" if info.suspended else "ACTIVE"
    state += " (READ-ONLY)" if info.readonly else ""
    state += " (DEFERRED REMOVE)" if info.deferred else ""
    there = {"LIVE": info.live, "INACTIVE": info.inactive}
    tables = [slot for slot, is_there in there.items() if is_there]
    segments = info.segments
    if "inactive" in call.words:
        segments = len(call.devices.table(info.name, inactive=True))
    call.say(
        f"Name:              {info.name}\n"
        f"State:             {state}\n"
        f"Read Ahead:        {info.read_ahead}\n"
        f"Tables present:    {' & '.join(tables) or 'None'}\n"
        f"Open count:        {info.opened}\n"
        f"Event number:      {info.events}\n"
        f"Major, minor:      {info.major}, {info.minor}\n"
        f"Number of targets: {segments}"
    )
    if info.uuid:
        call.say(f"UUID: {info.uuid}")
    call.say("")
    return True


def status(call: Call, words: list[str]) -> bool:
    """Show the status of each line of the tables; a loaded one, which does nothing, has none."""
    flush, inactive = "noflush" not in call.words, "inactive" in call.words

    def lines(info: Info) -> list[str]:
        if not inactive:
            return call.devices.status(info.name, flush=flush)
        loaded = call.devices.table(info.name, inactive=True)
        return [" ".join(line.split(" ")[:3]) for line in loaded]

    return _lines(call, words, "status", lines)


def table(call: Call, words: list[str]) -> bool:
    if "concise" in call.words:
        return each(call, words, _concise, "table")
    inactive = "inactive" in call.words
    return _lines(
        call, words, "table", lambda info: call.devices.table(info.name, inactive=inactive)
    )


def _lines(call: Call, words: list[str], ioctl: str, lines: Callable[[Info], list[str]]) -> bool:
    verbose = "verbose" in call.words

    def show(call: Call, info: Info) -> bool:
        try:
            found = lines(info) or [""]
        except Refused as error:
            return call.refused(ioctl, info.name, error)
        wanted = _of_target(call, [_as_printed(line) for line in found])
        for index, line in enumerate(wanted):
            if verbose and not index:
                long(call, info)
            call.say(f"{info.name}: {line}" if call.multiple and not verbose else line)
        if call.multiple and verbose and wanted:
            call.say("")
        return True

    return each(call, words, show, ioctl)


def _as_printed(line: str) -> str:
    """Return a line with the blank that the kernel has behind a target without words of its own."""
    return f"{line} " if line.count(" ") == 2 else line


def _of_target(call: Call, lines: list[str]) -> list[str]:
    target = call.words.value("target")
    return [line for line in lines if target is None or line.split()[2:3] == [target]]


def _concise(call: Call, info: Info) -> bool:
    try:
        lines = call.devices.table(info.name, inactive="inactive" in call.words)
    except Refused as error:
        return call.refused("table", info.name, error)
    if lines or call.words.value("target"):
        lines = _of_target(call, lines)
        if not lines:
            return True
    fields = [quoted(info.name), quoted(info.uuid), str(info.minor)]
    fields += ["ro" if info.readonly else "rw"]
    fields += [quoted(_as_printed(line)) for line in lines if line]
    call.say((";" if call.said_concise else "") + ",".join(fields), end="")
    call.said_concise = True
    return True


def quoted(text: str) -> str:
    """Return a text with a backslash before what has a meaning in the concise format."""
    return "".join("\\" + letter if letter in ",;\\" else letter for letter in text)


def length(call: Call, info: Info) -> int:
    """Return the size of the active table."""
    lines = [line.split() for line in call.devices.table(info.name, inactive=False)]
    return sum(int(words[1]) for words in lines)


def ls(call: Call, words: list[str]) -> bool:
    if "target" in call.words or "exec" in call.words:
        return each(call, words, _ls_of_target, "table")
    if "tree" in call.words:
        from dmcopy.shim import tree

        return tree.show(call)
    infos = call.devices.infos()  # all, whatever -u or -j say
    if not infos:
        call.say(NONE)
    for info in infos:
        _ls_line(call, info)
    return True


def _ls_line(call: Call, info: Info) -> None:
    named = device_name(call, info.number)
    call.say(f"{info.name}\t({named or f'{info.major}:{info.minor}'})")


def _ls_of_target(call: Call, info: Info) -> bool:
    lines = call.devices.table(info.name, inactive="inactive" in call.words)
    if not _of_target(call, lines or [""]):
        return True
    command = call.words.value("exec")
    if command is None or "verbose" in call.words:
        call.say(f"{info.name}\t({info.major}, {info.minor})")
    if command is not None and command.split():
        argv = [*command.split(), f"/dev/mapper/{info.name}"]
        try:
            os.waitpid(os.posix_spawnp(argv[0], argv, os.environ), 0)
        except OSError:
            pass  # dmsetup's child then ends with 127, which it does not tell
    return True


def device_name(call: Call, number: tuple[int, int]) -> str:
    """Return how a device is to be named: as -o says; empty for its number."""
    kind = call.name_kind
    if kind == "devname":
        for info in call.devices.infos():
            if info.number == number:
                return info.name
    return block_name(number) if kind != "devno" else ""


def deps(call: Call, words: list[str]) -> bool:
    """Show the devices that tables use."""
    return each(call, words, _deps_line, "deps")


def _deps_line(call: Call, info: Info) -> bool:
    if "verbose" in call.words:
        long(call, info)
    elif call.multiple:
        call.say(f"{info.name}: ", end="")
    named = [f" ({device_name(call, one) or f'{one[0]}, {one[1]}'})" for one in info.deps]
    call.say(f"{len(named)} dependencies\t:{''.join(named)}")
    if call.multiple and "verbose" in call.words:
        call.say("")
    return True


def targets(call: Call, words: list[str]) -> bool:
    del words
    for name, version in call.devices.targets().items():
        call.say(_version_line(name, version))
    return True


def target_version(call: Call, words: list[str]) -> bool:
    version = call.devices.targets().get(words[0])
    if version is None:
        return call.refused("target-version", words[0], Refused(errno.EINVAL))
    call.say(_version_line(words[0], version))
    return True


def _version_line(name: str, version: list[int]) -> str:
    return f"{name:16} v{'.'.join(map(str, version))}"


def version(call: Call, words: list[str]) -> bool:
    """Show the versions of the library whose words these are, and of the driver."""
    del words
    call.say(f"Library version:   {VERSION}\nDriver version:    {DRIVER}")
    return True
