"""dmsetup's verbs that scripts seldom call, and its usage."""

from __future__ import annotations

import errno
import os

from dmcopy.mangling import mangle as mangled
from dmcopy.shim import show
from dmcopy.shim.devices import Info, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dmcopy.shim.call import Call

_USAGE = """\
Usage:

dmsetup [OPTION]... VERB [WORD]...

\tcreate NAME [--table TABLE | FILE | --notable] [-u UUID] [-r]
\tcreate --concise [DEVICES]
\tload|reload NAME [--table TABLE | FILE] [-r]
\tsuspend|resume [--noflush] [--nolockfs] NAME...
\tclear NAME...
\twipe_table [-f] [--noflush] [--nolockfs] NAME...
\tremove [-f] [--retry] [--deferred] NAME...
\tremove_all [-f] [--deferred]
\trename NAME NEW | rename NAME --setuuid UUID
\tmessage NAME SECTOR WORD...
\twait NAME [EVENT]
\tls [--target TYPE] [--exec COMMAND] [-o devno|devname|blkdevname] | ls --tree [-o OPTION,...]
\tinfo [NAME...] | info -c [-o FIELD,...] [-O FIELD,...] [-S SELECTION] [--noheadings]
\tstatus|table [--target TYPE] [--inactive] [NAME...] | table --concise [NAME...]
\tdeps [-o devno|devname|blkdevname] [NAME...]
\tmknodes, mangle, splitname, targets, target-version, version, help
\tudevcreatecookie, udevreleasecookie, udevcomplete, udevcookies, udevflags

This is dmcopy's dmsetup: the devices are userspace devices, see 'dmcopy guide dm'. A table comes
from standard input if it is nowhere else; 'dmsetup help -c' lists the fields.
"""
_COOKIE = 0x0D4D0001
"""The one that there is: see `udevcreatecookie`."""
_FLAGS = (
    "DISABLE_DM_RULES DISABLE_SUBSYSTEM_RULES DISABLE_DISK_RULES DISABLE_OTHER_RULES "
    "LOW_PRIORITY DISABLE_LIBRARY_FALLBACK PRIMARY_SOURCE"
)


def usage(call: Call, words: list[str]) -> bool:
    """Print how it is called, on stderr as dmsetup does."""
    del words
    call.note(_USAGE)
    if "help" in call.words.operands and "columns" in call.words:
        from dmcopy.shim.report import help_lines

        call.note("\n".join(help_lines(typed=False)))
    return True


def splitname(call: Call, words: list[str]) -> bool:
    """Show the parts of a name as LVM makes it."""
    from dmcopy.shim.report import SPLITNAME, Report, ReportError, Row

    subsystem = words[1] if len(words) == 2 else "LVM"
    row = Row(Info(words[0], (0, 0), uuid=f"{subsystem}-"), [])
    try:
        lines = Report(call, SPLITNAME).lines([row])
    except ReportError as error:
        return call.fail(str(error))
    for line in lines:
        call.say(line)
    return True


def mangle(call: Call, words: list[str]) -> bool:
    """See that names are in their right form: the server knows them without codes."""

    def show_one(call: Call, info: Info) -> bool:
        form = "name and UUID" if info.uuid else "name"
        call.say(
            f"{mangled(info.name)}: {info.uuid or '[no UUID]'}: {form} already in correct form"
        )
        return True

    if words and call.lookup(words[0]) is None:
        return False  # without a word
    return show.each(call, words, show_one, "status")


def udevflags(call: Call, words: list[str]) -> bool:
    """Show what the flags in a cookie mean to udev's rules."""
    cookie, names = _cookie(call, words[0]), _FLAGS.split()
    for bit in range(16) if cookie else ():
        if cookie >> 16 & 1 << bit:
            if bit < len(names):
                call.say(f"DM_UDEV_{names[bit]}_FLAG='1'")
            else:
                head = "DM_UDEV_FLAG" if bit < 8 else "DM_SUBSYSTEM_UDEV_FLAG"
                call.say(f"{head}{bit % 8}='1'")
    return bool(cookie)


def _cookie(call: Call, word: str) -> int:
    try:
        value = int(word, 0)
    except ValueError:
        value = 0
    if not 0 < value < 1 << 32:
        call.note("Incorrect cookie value.")
        return 0
    return value


def udevcookies(call: Call, words: list[str]) -> bool:
    """List the cookies: nothing here waits for udev, and so there are none."""
    del words
    call.say("Cookie       Semid      Value      Last semop time           Last change time")
    return True


def udevcreatecookie(call: Call, words: list[str]) -> bool:
    """Print a cookie, for scripts that hand it on: nothing waits on it."""
    del words
    call.say(f"0x{_COOKIE:08X}")
    return True


def udevreleasecookie(call: Call, words: list[str]) -> bool:
    """Release the cookie, the one of the environment if none is said: nothing waited on it."""
    word = words[0] if words else os.environ.get("DM_UDEV_COOKIE")
    if word is None:
        return call.fail("No udev transaction cookie given.")
    return _is_ours(call, _cookie(call, word))


def udevcomplete(call: Call, words: list[str]) -> bool:
    """End what a cookie is for: nodes are there when a call returns."""
    cookie = _cookie(call, words[0])
    if cookie:
        call.say(f"DM_COOKIE_COMPLETED=0x{cookie:x}   ")
    return _is_ours(call, cookie)


def udevcomplete_all(call: Call, words: list[str]) -> bool:
    """End what all cookies are for: there are none."""
    if words and not words[0].isdecimal():
        return call.fail("Failed to read age_in_minutes parameter.")
    call.say("0 semaphores with keys prefixed by 3405 (0xd4d) destroyed. 0 skipped.")
    return True


def _is_ours(call: Call, cookie: int) -> bool:
    if cookie and cookie != _COOKIE:
        known = f"identified by cookie value {cookie} (0x{cookie:x})"
        call.note(f"Could not find notification semaphore {known}")
    return cookie == _COOKIE


def measure(call: Call, words: list[str]) -> bool:
    """Refuse: what a target tells the kernel's integrity measurement is the kernel's."""
    return show.each(call, words, lambda call, info: _not_here(call, "table", info.name), "status")


def setgeometry(call: Call, words: list[str]) -> bool:
    """Refuse: a loop device has none."""
    word = None if call.addressed else words[0]
    return call.find(word, "setgeometry") is not None and _not_here(call, "setgeometry", word)


def _not_here(call: Call, ioctl: str, word: str | None) -> bool:
    why = "the userspace engine has no such thing"
    return call.refused(ioctl, word, Refused(errno.EOPNOTSUPP, why))
