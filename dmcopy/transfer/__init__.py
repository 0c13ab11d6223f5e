"""Whole-device copies for people: plan, errors per destination, map, verification, progress.

with open_all(TransferRequest("/dev/sdb", ("/dev/sdc", "backup.img"))) as opened:
    outcome = TransferSession(opened, TransferOptions(verify=True)).run()
    print(outcome.exit_code, outcome.as_dict())


`dmcopy.transfer.verify` and `dmcopy.transfer.store` stand for themselves: most copies need neither.
"""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.transfer.copy import Transfer
    from dmcopy.transfer.destination import Destination, FailedRange
    from dmcopy.transfer.opening import OpenedRegions, TransferRequest, open_all
    from dmcopy.transfer.outcome import TransferOutcome
    from dmcopy.transfer.plan import Piece, TransferPlan
    from dmcopy.transfer.session import TransferOptions, TransferSession
else:
    __getattr__ = attributes(
        __name__,
        copy="Transfer",
        destination="Destination FailedRange",
        opening="OpenedRegions TransferRequest open_all",
        outcome="TransferOutcome",
        plan="Piece TransferPlan",
        session="TransferOptions TransferSession",
    )

__all__ = [
    "Destination",
    "FailedRange",
    "OpenedRegions",
    "Piece",
    "Transfer",
    "TransferOptions",
    "TransferOutcome",
    "TransferPlan",
    "TransferRequest",
    "TransferSession",
    "open_all",
]
