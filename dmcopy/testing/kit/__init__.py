"""Block devices for tests: on dmcopy's engine (the model), on this kernel, or in a guest."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.testing.kit.devices import Faults, Mapped, Mirror, Opened, ScratchDisk, Snapshot
    from dmcopy.testing.kit.kit import Kit
    from dmcopy.testing.kit.power import PowerCut
else:
    __getattr__ = attributes(
        __name__,
        devices="Faults Mapped Mirror Opened ScratchDisk Snapshot",
        kit="Kit",
        power="PowerCut",
    )

__all__ = ["Faults", "Kit", "Mapped", "Mirror", "Opened", "PowerCut", "ScratchDisk", "Snapshot"]
