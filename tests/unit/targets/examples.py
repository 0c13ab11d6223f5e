"""The targets that the guide to targets of your own shows, imported from its blocks."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

from dmcopy.status import STATUSES
from dmcopy.table import TARGETS as TABLE_TARGETS
from dmcopy.targets import TARGETS
from tests.docs.blocks import ROOT, blocks

GUIDE = ROOT / "dmcopy/guide/targets.md"


def load(name: str) -> types.ModuleType:
    """Return the module that the guide calls `name`.py, once imported."""
    if name not in sys.modules:
        (block,) = [one for one in blocks(GUIDE) if one.place == f"{name}.py"]
        module = types.ModuleType(name)
        sys.modules[name] = module
        text = "\n" * block.line + block.text  # a traceback then names the guide's line
        exec(compile(text, str(GUIDE), "exec", dont_inherit=True), module.__dict__)
    return sys.modules[name]


@contextmanager
def forgotten(*names: str) -> Iterator[None]:
    """Forget modules of these names, and their targets, when the block ends."""
    yield
    for registry in (TABLE_TARGETS, STATUSES, TARGETS):
        for target in [name for name, place in registry._modules.items() if place in names]:
            del registry._modules[target]
            registry._types.pop(target, None)
    for name in names:
        sys.modules.pop(name, None)
