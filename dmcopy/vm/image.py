"""The ELF file inside of a kernel image, whatever it is packed with."""

from __future__ import annotations

import lzma
import subprocess
import zlib
from collections.abc import Callable
from typing import Final

from dmcopy.block import tools


def unpack_image(vmlinuz: bytes) -> bytes | None:
    """Return the ELF kernel inside a vmlinuz, or None where it is compressed in another way.

    QEMU boots the ELF file directly (PVH). It saves the guest from unpacking itself, which takes
    5 s where every instruction is emulated.
    """
    for magic, unpack in _PACKINGS.items():
        start = vmlinuz.find(magic)
        try:
            image = unpack(vmlinuz[start:]) if start >= 0 else b""
        except (lzma.LZMAError, zlib.error, subprocess.CalledProcessError):
            continue
        if image.startswith(b"\x7fELF"):
            return image
    return None


def _unzstd(data: bytes) -> bytes:
    tool = tools.which("zstd")
    if tool is None:  # then the kernel unpacks itself
        return b""
    # It complains of what follows the packed kernel, after all of that is out.
    return subprocess.run([tool, "-dcq"], input=data, capture_output=True, check=False).stdout


_PACKINGS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor().decompress(data),
    b"\x1f\x8b\x08": lambda data: zlib.decompressobj(31).decompress(data),
    b"\x28\xb5\x2f\xfd": _unzstd,
}
