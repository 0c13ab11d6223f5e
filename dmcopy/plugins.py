"""Targets that other packages have: modules that `--plugin` names, and entry points.

A package offers a target by an entry point of the group `dmcopy.targets`, of the target's name. It
is imported when a table names a target that dmcopy does not have, and never before.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dmcopy.errors import DmcopyError, MissingError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "dmcopy.targets"


def load(module: str) -> None:
    """Import a module, so that the targets in it are registered.

    Raises UsageError for what is no module, or a target whose name is taken; MissingError for
    something else that the module imports and that is not there; DmcopyError for all that goes
    wrong within it.
    """
    if "/" in module or module.endswith(".py"):
        raise UsageError(
            f"plugin {module}: this is a path; say the name by which Python imports the module, "
            f"and have its folder in PYTHONPATH"
        )
    if not all(word.isidentifier() for word in module.split(".")):
        raise UsageError(f"plugin {module!r}: this is no name of a module, as 'import' takes one")
    _import(f"plugin {module}", module, lambda: importlib.import_module(module))


def load_entry_point(target: str) -> bool:
    """Import the entry point of this name. Returns whether there is one; raises as `load` does."""
    found = offered().get(target, [])
    if not found:
        return False
    packages = [one.dist.name if one.dist else one.module for one in found]
    if len({one.value for one in found}) > 1:
        raise UsageError(
            f"target '{target}' is offered by the packages {' and '.join(sorted(packages))}: "
            f"uninstall all but one of them"
        )
    _import(f"target '{target}' of package {packages[0]}", found[0].module, found[0].load)
    return True


@functools.cache
def offered() -> dict[str, list[EntryPoint]]:
    """Return the entry points of all installed packages, by the names of their targets."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for one in entry_points(group=GROUP):
        found.setdefault(one.name, []).append(one)
    return found


def _import(what: str, module: str, action: Callable[[], object]) -> None:
    try:
        action()
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
    except DmcopyError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise UsageError(
                f"{what}: there is no module {error.name}; is its folder in PYTHONPATH?"
            ) from error
        raise MissingError(f"{what} needs the module {error.name}, which is not here") from error
    except (Exception, SystemExit) as error:
        raise DmcopyError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
