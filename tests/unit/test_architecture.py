"""The rules that dmcopy/README.md states: who may import what, and how long a module may be."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "dmcopy"


def rows() -> list[list[str]]:
    """The places of each row of the table, from the top."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Who may import what")[2].partition("\n## ")[0]
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [re.findall(r"`(\w+)`", line) for line in lines]


def place_of(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        words = path.relative_to(PACKAGE).with_suffix("").parts
        if words[0] not in ("__init__", "__main__"):
            yield words[0], path


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dmcopy":
            if node.module == "dmcopy":
                yield from ((node.lineno, alias.name) for alias in node.names)
            else:
                yield node.lineno, place_of(str(node.module))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dmcopy."):
                    yield node.lineno, place_of(alias.name)


def test_the_table_has_every_place() -> None:
    listed = [place for row in rows() for place in row]
    assert sorted(listed) == sorted({place for place, _ in modules()})


def test_imports_point_up_the_table_only() -> None:
    level = {place: number for number, row in enumerate(rows()) for place in row}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} imports {other}"
        for place, path in modules()
        for line, other in imported(path)
        if other != "__version__" and other != place and level[other] > level[place]
    ]
    assert wrong == []


def test_no_descriptor_is_too_high() -> None:
    """select(2) takes none from 1024 on, and a program that uses dmcopy may have more: poll."""
    for _, path in modules():
        assert "select.select(" not in path.read_text(), path


def test_a_module_is_one_noun() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for _, path in modules()}
    assert [str(path) for path, lines in lengths.items() if lines > 450] == []


def test_what_a_package_lists_is_there_and_documented() -> None:
    import importlib

    for init in sorted({path.parent / "__init__.py" for path in PACKAGE.rglob("*.py")}):
        words = init.parent.relative_to(PACKAGE.parent).parts
        module = importlib.import_module(".".join(words))
        assert module.__doc__, f"{init} says nothing of the package"
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            assert not callable(value) or value.__doc__, f"{module.__name__}.{name} says nothing"


def test_a_name_means_one_thing() -> None:
    """A class has a name of its own, but for those that the README names."""
    found: dict[str, list[str]] = {}
    for place, path in modules():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(place)
    several = {name: places for name, places in found.items() if len(places) > 1}
    beside = {"Mirror": ["testing", "workflows"], "Snapshot": ["testing"]}
    for name in [name for name, places in several.items() if "targets" in places]:
        assert sorted(several.pop(name)) == sorted(["table", "targets", *beside.get(name, [])])
    assert several == {"Step": ["testing", "workflows"]}


def only_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def needs(path: Path, modules: Collection[str], *, types: bool) -> set[str]:
    """The modules whose code this one needs when it runs, imported at its top or where needed.

    With `types` also those of which only the types are named.
    """

    def found(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if only_types(child) and not types:
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                named = [f"{child.module}.{alias.name}" for alias in child.names]
                yield from (name if name in modules else str(child.module) for name in named)
            elif isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            yield from found(child)

    return set(found(parsed(path)))


def circles(graph: dict[str, set[str]]) -> list[str]:
    """What is left when all that leads nowhere and is led to from nowhere is taken away."""
    left = {name: needs & graph.keys() - {name} for name, needs in graph.items()}
    while ends := {
        name for name in left if not left[name] or not any(name in needs for needs in left.values())
    }:
        left = {name: needs - ends for name, needs in left.items() if name not in ends}
    return sorted(left)


def graph(*, types: bool) -> dict[str, set[str]]:
    paths = {
        ".".join(("dmcopy", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in PACKAGE.rglob("*.py")
    }
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    return {name: needs(path, paths, types=types) for name, path in paths.items()}


def test_no_module_needs_itself_to_run() -> None:
    assert circles(graph(types=False)) == []


def test_types_point_back_only_where_the_readme_says() -> None:
    known = {
        *(f"dmcopy.mapper.{name}" for name in ("base", "device")),
        *(f"dmcopy.targets.{name}" for name in ("handover", "origin", "snapshot")),
    }
    within = graph(types=True)
    apart = {
        name: {other for other in within[name] if not {name, other} <= known} for name in within
    }
    assert known <= set(circles(within))
    assert circles(apart) == []


def test_a_circle_is_found() -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"b", "e"}, "d": set(), "e": {"x"}}
    assert circles(graph) == ["b", "c"]
