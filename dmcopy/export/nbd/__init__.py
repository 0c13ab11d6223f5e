"""The NBD server of dmcopy: protocol, handshake, transmission, and the front end over them."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.export.nbd.server import NbdServer
else:
    __getattr__ = attributes(__name__, server="NbdServer")

__all__ = ["NbdServer"]
