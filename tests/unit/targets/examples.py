"""The targets that the guide to targets of your own shows, imported from its blocks."""

from __future__ import annotations

import sys
import types

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
