"""Whole-device copies for people: plan, errors per destination, map, verification, progress.

with open_all(Request("/dev/sdb", ("/dev/sdc", "backup.img"))) as opened:
    outcome = Session(opened, Options(verify=True)).run()
    print(outcome.exit_code, outcome.as_dict())


`dmcopy.transfer.verify` and `dmcopy.transfer.store` stand for themselves: most copies need neither.
"""

from typing import TYPE_CHECKING

from dmcopy.lazy import attributes

if TYPE_CHECKING:
    from dmcopy.transfer.copy import Transfer
    from dmcopy.transfer.destination import Destination, FailedRange
    from dmcopy.transfer.opening import Opened, Request, open_all
    from dmcopy.transfer.outcome import Outcome
    from dmcopy.transfer.plan import Piece, Plan
    from dmcopy.transfer.session import Options, Session
else:
    __getattr__ = attributes(
        __name__,
        copy="Transfer",
        destination="Destination FailedRange",
        opening="Opened Request open_all",
        outcome="Outcome",
        plan="Piece Plan",
        session="Options Session",
    )

__all__ = [
    "Destination",
    "FailedRange",
    "Opened",
    "Options",
    "Outcome",
    "Piece",
    "Plan",
    "Request",
    "Session",
    "Transfer",
    "open_all",
]
