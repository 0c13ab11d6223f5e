"""Which changes are found, and that each is made alone."""

from __future__ import annotations

import ast

import pytest

from tests.mutate.sites import find_sites


def changes(source: str) -> list[str]:
    """Return the module as each change makes it, one after the other from the same tree."""
    tree = ast.parse(source)
    found = [site.apply(tree) for site in find_sites(tree)]
    assert ast.unparse(tree) == ast.unparse(ast.parse(source)), "a change was not undone"
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["x = a <= b"]),
        ("x = a < 0.5", []),
        ("x = zip(a, b, strict=True)", []),
        ("x = a in b", ["x = a not in b"]),
        ("x = a and b", ["x = a or b"]),
        ("x = not a", ["x = a"]),
        ("x = a << b", ["x = a >> b"]),
        ("x = True", ["x = False"]),
        ("x = 7", ["x = 8"]),
        ("x = min(a, b)", ["x = a", "x = b"]),
        ("x = a if b else c", ["x = a", "x = c"]),
        ("x = f'{a}' if b else ''", ["x = f'{a}'", "x = ''"]),
        ("x = a if b < c else f'{a}'", ["x = a", "x = f'{a}'", "x = a if b <= c else f'{a}'"]),
        ("f(a)", ["pass"]),
        ("x.y = a", ["pass"]),
        ("x += a", ["pass"]),
        ("del x[a]", ["pass"]),
        ("def f():\n    return False", ["def f():\n    return True"]),
        ("def __init__(self):\n    self.x = 1", ["def __init__(self):\n    self.x = 2"]),
        ("def __init__(self):\n    self.x = a", ["def __init__(self):\n    pass"]),
        ("raise ValueError(f'{a + 1}')", ["pass"]),
        ("def f():\n    return a", ["def f():\n    return None"]),
        ("if a:\n    f", ["if False:\n    f", "if True:\n    f"]),
        ("while a:\n    break", ["while a:\n    pass"]),
    ],
)
def test_a_change_is_found(source: str, expected: list[str]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""A text."""',
        "x = f'{1 + 1}'",
        "x = f'{a}: {b}' if a < b else f'{b}'",
        "assert a < 1, a + 1",
        "def f(a: int = None) -> list[1]: ...",
        "X = int | None",
        "if TYPE_CHECKING:\n    x = 1",
        "def f():\n    raise NotImplementedError",
        "def f():\n    return None",
        "def f():\n    return ''",
        "def f(a):\n    del a",
        "def __init__(self):\n    self.x = None",
        "def __repr__(self):\n    return 1",
    ],
)
def test_what_is_only_words_is_left_alone(source: str) -> None:
    assert changes(source) == []


def test_a_change_says_where_it_is() -> None:
    (site,) = find_sites(ast.parse("\nx = (a +\n  b)"))
    assert (site.line, str(site)) == (2, "a + b  →  a - b")
