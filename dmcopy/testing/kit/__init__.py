"""Block devices for tests: on dmcopy's engine (the model), on this kernel, or in a guest."""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.testing.kit.devices import Device, Disk, Faults, Mirror, Opened, Snapshot
    from dmcopy.testing.kit.kit import Kit
else:
    __getattr__ = attributes(
        __name__, devices="Device Disk Faults Mirror Opened Snapshot", kit="Kit"
    )

__all__ = ["Device", "Disk", "Faults", "Kit", "Mirror", "Opened", "Snapshot"]
