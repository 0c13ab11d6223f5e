"""One call of the shim: its words, the devices, what it prints and how it ends."""

from __future__ import annotations

import errno as numbers
import os
import sys
import time

from dmcopy.mangling import unmangle
from dmcopy.shim.devices import Info, Refused, number_at
from dmcopy.shim.words import CommandLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dmcopy.shim.devices import Devices


class Call:
    """What each verb is given. `multiple`: it is for several devices, and says which is which."""

    def __init__(self, words: CommandLine, devices: Devices) -> None:
        self.words = words
        self.devices = devices
        self.multiple = False
        self.said_concise = False
        self.name_kind = "devno"
        self.sleep = time.sleep
        self.now = time.monotonic

    @property
    def addressed(self) -> bool:
        """Whether the device is said by its UUID or number."""
        return "uuid" in self.words or "major" in self.words

    @property
    def uuid(self) -> str:
        """The UUID by which it is said, if it is."""
        return self.words.value("uuid") or "" if self.addressed else ""

    def say(self, text: str, end: str = "\n") -> None:
        """Print what was asked for."""
        sys.stdout.write(text + end)

    def note(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(text + "\n")

    def fail(self, text: str) -> bool:
        """Print a message, and return that it was not done."""
        self.note(text)
        return False

    def refused(self, ioctl: str, word: str | None, error: Refused) -> bool:
        """Say what the engine refused, as dmsetup says it, and why in a line of its own."""
        on = f"device-mapper: {ioctl} ioctl on {word or ''} {self.uuid}"
        self.note(f"{on} failed: {os.strerror(error.errno)}")
        if str(error):
            self.note(f"dmcopy: {error}")
        return False

    def find(self, word: str | None, ioctl: str) -> Info | None:
        """Return the device that is meant; None, when it was said that there is none.

        A word is a name, or a path: of a node in /dev/mapper, or of any other of the same device.
        """
        if word is None and not self.addressed:
            self.note("No device specified.")
            return None
        found = self.lookup(word)
        if found is None and word is not None and "/" in word:
            shown = os.path.basename(word) if os.path.exists(word) else word
            self.note(f"Device {shown} not found")
        elif found is None:
            self.refused(ioctl, word, Refused(numbers.ENXIO))
        return found

    def lookup(self, word: str | None) -> Info | None:
        """Return the device that is meant, None where there is none."""
        infos = self.devices.infos()
        if word is None:
            number = (self.words.number("major"), self.words.number("minor"))
            by_uuid = "uuid" in self.words
            found = [
                info
                for info in infos
                if (info.uuid == self.uuid if by_uuid else info.number == number)
            ]
        else:
            name = unmangle(word.removeprefix("/dev/mapper/"))
            found = [info for info in infos if info.name == name]
            if not found and "/" in word:
                found = [info for info in infos if info.number == number_at(word)]
        return found[0] if found else None
