"""What is imported when it is first asked for: all of it can be had, and only that is imported."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dmcopy import status, table, targets
from dmcopy.lazy import Registry

ROOT = Path(__file__).parents[2]
REGISTRIES = [table.TARGETS, status.STATUSES, targets.TARGETS]
RUN = """
import json, sys
from dmcopy.mapper.userspace import UserMapper
from dmcopy.status import MirrorStatus
from dmcopy.table import Table
text = f"0 64 mirror core 1 8 2 {sys.argv[1]} 0 {sys.argv[2]} 0"
with UserMapper() as mapper:
    with mapper.device("m", Table.parse(text)) as made:
        assert isinstance(mapper.status(made.name)[0].status, MirrorStatus)
print(json.dumps([name for name in sys.modules if name.startswith("dmcopy.")]))
"""


@pytest.mark.parametrize("package", [table, status])
def test_every_public_name_is_that_of_its_module(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        value = getattr(package, name)
        where = getattr(value, "__module__", None)
        if where and where.startswith("dmcopy."):
            assert getattr(importlib.import_module(where), name, value) is value


def test_an_unknown_name_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match=r"module 'dmcopy\.table' has no attribute 'Nothing'"):
        table.Nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="Nothing"):
        from dmcopy.status import Nothing  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_registry_knows_every_type_that_its_modules_have(registry: Registry[Any]) -> None:
    promised = list(registry)
    assert {name: registry[name].name for name in promised} == {name: name for name in promised}
    package = registry[promised[0]].__module__.rpartition(".")[0]
    for path in (ROOT / package.replace(".", "/")).glob("[!_]*.py"):
        importlib.import_module(f"{package}.{path.stem}")
    assert list(registry) == promised  # no module has added one that was not promised
    assert len(registry) == len(promised)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_a_registry_is_empty_of_what_nobody_promised(registry: Registry[Any]) -> None:
    assert "nothing" not in registry
    assert registry.get("nothing") is None
    with pytest.raises(KeyError):
        registry["nothing"]


def test_a_type_of_somebody_else_can_be_added() -> None:
    registry: Registry[Any] = Registry("dmcopy.table", mirror="mirror")

    class Mine:
        name: ClassVar[str] = "mine"

    registry.register(Mine)

    assert registry["mine"] is Mine
    assert list(registry) == ["mirror", "mine"]


def test_a_mirror_imports_no_other_target(tmp_path: Path) -> None:
    legs = [tmp_path / "one", tmp_path / "other"]
    for leg in legs:
        leg.write_bytes(bytes(64 << 9))
    argv = [sys.executable, "-c", RUN, *map(str, legs)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    loaded = set(json.loads(done.stdout))
    assert {"dmcopy.table.mirror", "dmcopy.status.legs", "dmcopy.targets.mirror"} <= loaded
    others = {"dmcopy.table.crypt", "dmcopy.status.pools", "dmcopy.targets.snapshot"}
    assert not others & loaded
