"""dmsetup's options: those that go to it as they are, those that are refused, and why."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, Final

from dmcopy.block.devno import devno_text
from dmcopy.cli.output import printable, say
from dmcopy.errors import DmcopyError, UsageError
from dmcopy.mapper.base import DmInfo
from dmcopy.mapper.dmsetup import DmsetupError
from dmcopy.mapper.kernel import KernelMapper
from dmcopy.mapper.names import device_name, unmangle
from dmcopy.mapper.served import ServedMapper

# Options of dmsetup that mean nothing here, or that would do harm, and what to do instead.
REFUSED: Final = {
    "--exec": "runs nothing: loop over 'dmcopy dm ls --json'",
    "--count": "repeats nothing: use watch(1), or 'dmcopy dm events --follow'",
    "--interval": "repeats nothing: use watch(1), or 'dmcopy dm events --follow'",
    "--udevcookie": "is not taken: each command waits for udev with a cookie of its own",
    "--noudevrules": "is not taken: dmcopy leaves the nodes to udev's rules wherever udevd runs",
    "--readahead": "is not taken: use 'blockdev --setra' on the node",
    "--force": "is for 'remove'; to wipe under load: wipe_table --noflush --nolockfs",
    "--major": "is not taken: the driver has only one major number",
    "--select": "is not taken: dmsetup itself heeds it in 'dmcopy dm info -c -S' only",
    "--uid": "is not taken: use chown on the node, or a rule of udev's",
    "--gid": "is not taken: use chgrp on the node, or a rule of udev's",
    "--mode": "is not taken: use chmod on the node, or a rule of udev's",
    "--manglename": "is not taken: a name is always what it is, with no codes in it",
}
NAME: Final = "the mapped device: its name or node"
_SHORT: Final = {
    "--force": "-f",
    "--major": "-j",
    "--select": "-S",
    "--uid": "-U",
    "--gid": "-G",
    "--mode": "-M",
}
# dmsetup takes every option with every verb; those that mean nothing to a verb do nothing. Nor do
# the first few here with any: tables and names are checked, nothing is asked, and nodes are there.
_IDLE: Final = (
    "--checks --verifyudev --addnodeoncreate --addnodeonresume -y/--yes -v/--verbose "
    "-c/-C/--columns -r/--readonly --noheadings --nameprefixes --rows --unquoted --noopencount "
    "--noflush --nolockfs --noudevsync --retry --inactive"
)
_IDLE_VALUES: Final = (("-o", "--options"), ("-O", "--sort"), ("--separator",))


class PassOn(argparse.Action):
    """An option that dmsetup is given as it is; `typed` says that --json knows what it means."""

    takes_dashes = True  # its value may begin with a dash, as in -O -name

    def __init__(self, *args: Any, typed: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.typed = typed

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Note the option for dmsetup, and its value for us."""
        del parser
        words = [option_string or "", *([values] if isinstance(values, str) else [])]
        setattr(namespace, self.dest, values if isinstance(values, str) else True)
        namespace.passed = [*getattr(namespace, "passed", []), *words]
        if not self.typed:
            namespace.untyped = option_string


class _Refuse(argparse.Action):
    """An option of dmsetup that is refused with one sentence."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del namespace, values
        raise UsageError(f"{parser.prog}: {option_string} {REFUSED[self.dest]}")


def add_flags(
    parser: argparse.ArgumentParser, *names: str, typed: bool = False, **more: Any
) -> None:
    """Declare an option without a value that is passed on."""
    parser.add_argument(*names, action=PassOn, nargs=0, default=False, typed=typed, **more)


def add_value(
    parser: argparse.ArgumentParser, *names: str, typed: bool = False, **more: Any
) -> None:
    """Declare an option with a value that is passed on."""
    parser.add_argument(*names, action=PassOn, type=str, typed=typed, **more)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare the other ways to name one device."""
    parser.add_argument("-u", "--uuid", metavar="UUID", help="the device of this UUID")
    parser.add_argument("-j", "--major", type=int, metavar="N", help="with -m: by its number")
    parser.add_argument("-m", "--minor", type=int, metavar="N", help="with -j")


def add_selection(parser: argparse.ArgumentParser) -> None:
    text = "the devices that match, as in 'name=~^test && open=0' (dmsetup info -c -S help)"
    parser.add_argument("-S", "--select", type=str, metavar="SELECTION", help=text)


def add_the_rest(parser: argparse.ArgumentParser) -> None:
    """Declare those options of dmsetup's that a verb has not declared as its own."""
    for name in REFUSED:
        words = [word for word in (_SHORT.get(name), name) if word]
        _add_unless(parser, words, dest=name, action=_Refuse, nargs="?")
    for idle in (tuple(names.split("/")) for names in _IDLE.split()):
        _add_unless(parser, idle, dest=f"idle{idle[-1]}", action="store_true")
    for idle in _IDLE_VALUES:
        _add_unless(parser, idle, dest=f"idle{idle[-1]}", type=str)


def _add_unless(parser: argparse.ArgumentParser, words: Sequence[str], **more: Any) -> None:
    """Declare an option under those of its names that the verb does not use itself."""
    free = [word for word in words if word not in parser._option_string_actions]
    if words[-1] in free:
        parser.add_argument(*free, help=argparse.SUPPRESS, **more)


def addressed(args: argparse.Namespace) -> bool:
    """Return whether a device was named by its UUID or number."""
    return any(value is not None for value in (args.uuid, args.major, args.minor))


def shift(args: argparse.Namespace, *names: str) -> None:
    """Where the device was named by UUID or number, the first word is what comes after a name."""
    if addressed(args):
        values = [getattr(args, name) for name in names]
        for name, value in zip(names[1:], values, strict=False):
            setattr(args, name, value)
        setattr(args, names[0], None)


def chosen(args: argparse.Namespace) -> list[str]:
    """Return the names of the devices that the command is for, in whichever way they were named.

    Raises UsageError when they were named in two ways or in none, DeviceError for one that is not
    there.
    """
    devices = getattr(args, "devices", None) or [one for one in [vars(args).get("device")] if one]
    select = getattr(args, "select", None)
    ways = sum(map(bool, (devices, addressed(args), select is not None)))
    if ways != 1:
        what = "say which device" if not ways else "name the devices in one way only"
        raise UsageError(
            f"{what}: by name, by UUID (-u), by number (-j and -m), or by what matches"
        )
    if select is not None:
        return selected(args.mapper, select)
    if addressed(args):
        return [_addressed(args).name]
    if isinstance(args.mapper, ServedMapper):
        return [args.mapper.name_of(one) for one in devices]
    return list(map(device_name, devices))


def tell_more(args: argparse.Namespace, name: str) -> None:
    """With -v, print what there is to know of a device that was changed, as dmsetup does."""
    if getattr(args, "idle--verbose", False) and not getattr(args, "dry_run", False):
        print_report(args.mapper, ["info"], [name])


def selected(mapper: KernelMapper | ServedMapper, selection: str) -> list[str]:
    """Return the names of the devices that match a selection of dmsetup's; it may be none."""
    if not selection.strip():
        raise UsageError("an empty selection means every device: name them, or say what they match")
    if isinstance(mapper, ServedMapper):
        text = as_dmsetup(["info", "-c", "--noheadings", "-o", "mangled_name", "-S", selection])
        return list(map(unmangle, text.split())) if mapper.ls() else []
    options = ["--manglename", "hex", "--noheadings", "-o", "mangled_name", "-S", selection]
    try:
        text = mapper.dmsetup.run("info", "-c", *options)
    except DmsetupError as error:
        raise wrong_words(error) from error
    names = text.split()
    return [] if names[:2] == ["No", "devices"] else list(map(unmangle, names))


def _addressed(args: argparse.Namespace) -> DmInfo:
    if (args.major is None) != (args.minor is None):
        raise UsageError("say both the major number (-j) and the minor number (-m)")
    if args.uuid is not None and args.major is not None:
        raise UsageError("name the device by its UUID or by its number, not by both")
    number = None if args.major is None else (args.major, args.minor)
    for info in args.mapper.ls():
        if (number is None and info.uuid == args.uuid) or (number and info.number == number):
            return DmInfo(name=info.name)
    what = f"of UUID {args.uuid}" if number is None else f"numbered {devno_text(number)}"
    raise UsageError(f"there is no mapped device {what}")


def _is_addressed(args: argparse.Namespace) -> bool:
    return hasattr(args, "major") and addressed(args)


def report(args: argparse.Namespace, verb: str) -> None:
    """Print what dmsetup prints for this verb and these options."""
    words = [verb, *getattr(args, "passed", [])]
    if isinstance(args.mapper, ServedMapper):
        named = getattr(args, "devices", None) or getattr(args, "select", None) is not None
        print_report(args.mapper, words, chosen(args) if named or _is_addressed(args) else [])
        return
    for name in ("uuid", "major", "minor", "select"):
        value = getattr(args, name, None)
        words += [] if value is None else [f"--{name}", str(value)]
    print_report(args.mapper, words, list(map(device_name, getattr(args, "devices", []))))


def print_report(mapper: KernelMapper | ServedMapper, words: list[str], devices: list[str]) -> None:
    """Print what dmsetup prints for these words and devices.

    Names are taken and shown as they are: in dmsetup's default mode, one odd name
    makes the whole list fail.
    """
    verb, *options = words
    if isinstance(mapper, ServedMapper):
        mapper.ls()  # what is wrong with the server is said as everywhere,
        for name in devices:
            mapper.info(name)  # and a device that is not there
        _print(as_dmsetup([*words, "--", *devices]))
        return
    try:
        call = mapper.dmsetup.finish(verb, "--manglename", "hex", *options, "--", *devices)
    except DmsetupError as error:
        _print(error.printed)
        raise _failed(mapper, error, devices) from error
    _print(call.stdout)
    if call.stderr:
        say(printable(call.stderr.rstrip()))


def as_dmsetup(words: list[str]) -> str:
    """Return what dmsetup would print of userspace devices. Raises UsageError as it complains."""
    from dmcopy.shim.main import run
    from dmcopy.shim.served import ServedDevices

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words, ServedDevices())
    if code:
        lines = [line.strip() for line in err.getvalue().splitlines()]
        raise UsageError(_complaint(lines) or "; ".join(lines))
    return out.getvalue()


def _print(text: str) -> None:
    for line in text.splitlines():
        print("\t".join(map(printable, line.split("\t"))))


def _failed(mapper: KernelMapper, error: DmsetupError, devices: list[str]) -> DmcopyError:
    """Say which of the devices is not there, or which word dmsetup does not know."""
    there = {info.name for info in mapper.ls()} if devices else set()
    for name in devices:
        if name not in there:
            return error.about(name, "look at it")
    return wrong_words(error)


def wrong_words(error: DmsetupError) -> DmcopyError:
    """Return dmsetup's complaint of a field, an option or a selection as one sentence."""
    complaint = _complaint([line.strip() for line in error.said.split("; ")])
    return UsageError(complaint) if complaint else error


def _complaint(lines: list[str]) -> str:
    wrong = [line for line in lines if re.search("recogni[sz]ed|Selection syntax", line)]
    if not wrong:
        return ""
    return f"dmsetup says: {wrong[0]} ('dmcopy dm info -c -o help' lists the fields)"
