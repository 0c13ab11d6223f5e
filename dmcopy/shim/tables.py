"""A table's devices as the server is to have them: its own by their nodes, others by whole paths.

What `mapper.own` does for a typed table, for the words of one: a word is a device if it is a path
or a number.
"""

from __future__ import annotations

import errno
import os
import re

from dmcopy.mangling import mangle, unmangle
from dmcopy.runtime import nodes_folder
from dmcopy.shim.devices import Info, Refused, number_at
from dmcopy.shim.words import strtoull

_MAPPER = "/dev/mapper/"


def split_message(text: str) -> list[str]:
    """Return the words of a message; a backslash makes the next character part of a word."""
    found = re.findall(r"(?:\\.|[^\s\\])+", text, re.DOTALL)
    return [re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL) for word in found]


def resolved(text: str, infos: list[Info]) -> str:
    """Return the lines of a table with its devices resolved. Raises Refused."""
    lines = []
    for line in text.splitlines():
        head, rest = line.split(" ")[:3], line.split(" ")[3:]
        lines.append(" ".join([*head, *(_device(word, infos) for word in rest)]))
    return "\n".join(lines)


def numbered(text: str, infos: list[Info]) -> str:
    """Return a table's or status's lines with the server's own devices as numbers."""
    numbers = {node(info.name): f"{info.major}:{info.minor}" for info in infos if info.major}
    lines = [
        " ".join(numbers.get(word, word) for word in line.split(" ")) for line in text.split("\n")
    ]
    return "\n".join(lines)


def node(name: str) -> str:
    """Return the node of one of the server's own devices, by which it knows it in tables."""
    return f"{nodes_folder()}/{mangle(name)}"


def _device(word: str, infos: list[Info]) -> str:
    number = number_of(word)
    if number is None and "/" not in word:
        return word
    own = _own(word, number or number_at(word), infos)
    if own is not None:
        return node(own.name)
    if number:
        return word
    if not os.path.exists(word):
        raise Refused(errno.ENOENT, f"{word}: there is no such device")
    below = _stands_on(number_at(word) or _file_system_at(word), infos)
    if below is not None:
        raise Refused(
            errno.EBUSY,
            f"{word} stands on {node(below.name)}, and the server of that would wait for itself: "
            "name the device itself in the table",
        )
    if os.path.realpath(os.path.dirname(word)).startswith("/proc/"):
        return os.path.realpath(word)  # what it is here, it is not in the server
    return os.path.abspath(word)  # noqa: PTH100 - symbolic links stay


def _own(word: str, number: tuple[int, int] | None, infos: list[Info]) -> Info | None:
    name = ""
    for folder in (_MAPPER, f"{nodes_folder()}/"):
        if word.startswith(folder):
            name = unmangle(word.removeprefix(folder))
    for info in infos:
        if info.name == name or (number is not None and info.number == number):
            return info
    return None


def number_of(word: str) -> tuple[int, int] | None:
    """Return the number that a word is, None for another."""
    major, colon, minor = word.partition(":")
    if colon and major.isdecimal() and minor.isdecimal():
        return strtoull(major), strtoull(minor)
    return None


def _stands_on(number: tuple[int, int] | None, infos: list[Info]) -> Info | None:
    """Return which of the server's devices is below a device of the kernel's, None if none is."""
    own = {info.number: info for info in infos if info.major}
    for info in list(own.values()):  # and the file systems that are the files below loop devices
        if file := _read(f"/sys/dev/block/{info.major}:{info.minor}/loop/backing_file"):
            own[_file_system_at(file) or info.number] = info
    todo = [number] if number and own else []
    seen: set[tuple[int, int]] = set()
    while todo:
        one = todo.pop()
        if one in own:
            return own[one]
        if one in seen:
            continue
        seen.add(one)
        if not one[0]:  # a file system on no single device, as btrfs
            todo += _sources(one)
            continue
        folder = os.path.realpath(f"/sys/dev/block/{one[0]}:{one[1]}")
        below = [f"{folder}/slaves/{name}/dev" for name in _listed(f"{folder}/slaves")]
        if os.path.exists(f"{folder}/partition"):
            below.append(f"{os.path.dirname(folder)}/dev")
        todo += [found for found in map(number_of, map(_read, below)) if found]
        file = _read(f"{folder}/loop/backing_file")
        if file:
            todo += filter(None, [_file_system_at(file)])
    return None


def _sources(number: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the devices from which a file system is mounted."""
    lines = [line.split(" ") for line in _read("/proc/self/mountinfo").splitlines()]
    devno = f"{number[0]}:{number[1]}"
    sources = [line[line.index("-") + 2] for line in lines if line[2:3] == [devno]]
    return [found for source in sources if (found := number_at(source))]


def holders(number: tuple[int, int]) -> list[str]:
    """Return the kernel's devices that stand on a device."""
    return _listed(f"/sys/dev/block/{number[0]}:{number[1]}/holders")


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _file_system_at(path: str) -> tuple[int, int] | None:
    """Return the number of the device that a file is on."""
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    return os.major(device), os.minor(device)
