"""The origin and the COW of a verb of `dmcopy cow`: as options, or as operands in their order."""

from __future__ import annotations

import argparse

from dmcopy.errors import UsageError


def add(verb: argparse.ArgumentParser, **helps: str) -> None:
    """Let each of `helps` (origin=…, cow=…) be given as `--NAME` or, in this order, by itself."""
    for name, text in helps.items():
        metavar = "COW" if name == "cow" else name[0].upper()
        verb.add_argument(f"--{name}", metavar=metavar, help=text)
    order = " ".join(name.upper() for name in helps)
    verb.add_argument("operands", nargs="*", metavar=order, help="what is not given as an option")


def settle(args: argparse.Namespace, *names: str) -> None:
    """Put the operands where no option has said anything. Raises UsageError for few or many."""
    open_names = [name for name in names if getattr(args, name) is None]
    if len(args.operands) != len(open_names):
        wanted = " and ".join(f"{name} (--{name})" for name in names)
        raise UsageError(f"give the {wanted}, each once: {len(args.operands)} operands are here")
    for name, word in zip(open_names, args.operands, strict=True):
        setattr(args, name, word)
