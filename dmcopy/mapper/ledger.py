"""The ledger of `dmcopy.ledger`, under the name that engines and workflows know it by."""

from dmcopy.ledger import Entry, Kind, Ledger, NoLedger, alive, boot_id, default_path, identity

__all__ = ["Entry", "Kind", "Ledger", "NoLedger", "alive", "boot_id", "default_path", "identity"]
