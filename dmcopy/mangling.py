r"""Names as libdevmapper writes them: what udev does not like in a file name becomes \xNN.

Rules: man dmsetup, "Mangled names"; the set of characters is the one that udev keeps.
"""

from __future__ import annotations

import os
import re

ODD = re.compile(rb"[^0-9A-Za-z#+\-.:=@_]")
CODED = re.compile(rb"\\x([0-9a-fA-F]{2})")


def mangle(name: str) -> str:
    r"""Return the file name in /dev/mapper of the device `name`: `a b` is `a\x20b`."""
    raw = os.fsencode(name)
    return ODD.sub(lambda match: b"\\x%02x" % match[0][0], raw).decode("ascii")


def unmangle(text: str) -> str:
    """Return the name whose mangled form is `text`."""
    raw = os.fsencode(text)
    raw = CODED.sub(lambda match: bytes([int(match[1], 16)]), raw)
    return os.fsdecode(raw)
