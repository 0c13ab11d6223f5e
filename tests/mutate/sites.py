"""Where a module can be changed in a small way that its tests should notice. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NOT_RUN = {"annotation", "returns", "decorator_list", "bases", "type_params"}
"""Fields that are types, or are there for the reader."""


class Site(NamedTuple):
    """One change: `new` in place of what is at `field` (and `index`, in a list) of `parent`."""

    line: int
    before: str
    after: str
    parent: ast.AST
    field: str
    index: int | None  # type: ignore[assignment]
    new: ast.AST

    def apply(self, tree: ast.AST) -> str:
        """Return the source of `tree`, which the site is of, with this change and no other."""
        old = self._put(self.new)
        try:
            return ast.unparse(ast.fix_missing_locations(tree))
        finally:
            self._put(old)

    def _put(self, node: ast.AST) -> ast.AST:
        value: Any = getattr(self.parent, self.field)
        if self.index is None:
            setattr(self.parent, self.field, node)
            old: ast.AST = value
        else:
            old, value[self.index] = value[self.index], node
        return old

    def __str__(self) -> str:
        return f"{self.before}  →  {self.after}"


def find_sites(node: ast.AST) -> Iterator[Site]:
    """Yield the changes that can be made below `node`, in the order of the source.

    What is only words is left out: docstrings, messages of exceptions, assertions (zip's `strict`,
    too), `__repr__`,
    f-strings, and the choice between two of them, which is seldom more than one of wording (that
    of an f-string or something else may be more, and is changed). So is what can seldom matter:
    None returned for what is as false, an attribute that `__init__` would not give its first value,
    where that is a constant (the constants are changed all the same), and whether a number with a
    point is below a bound or just on it.
    """
    for field, value in ast.iter_fields(node):
        if field in _NOT_RUN:
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if not isinstance(child, ast.AST) or _is_words(child):
                continue
            for new in _changes(child):
                if isinstance(new, ast.Pass) and _is_first_value(node, child):
                    continue
                before, after = _words(child), _words(new)
                line: int = child.lineno  # type: ignore[attr-defined]
                yield Site(line, before, after, node, field, index, new)
            if not isinstance(child, ast.Raise):
                yield from find_sites(child)


def _is_words(node: ast.AST) -> bool:
    match node:
        case ast.IfExp(_, ast.JoinedStr(), ast.JoinedStr()):
            return True
        case ast.JoinedStr() | ast.Assert() | ast.Expr(value=ast.Constant()):
            return True
        case ast.FunctionDef(name="__repr__") | ast.Import() | ast.ImportFrom():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.keyword(arg="strict"):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError")):
            return True
    return False


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(_, [ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()], [ast.Constant(float())]):
            pass  # no measured number is ever exactly that
        case ast.Compare(left, ops, comparators):
            for place, op in enumerate(ops):
                other = _COMPARISONS[type(op)]()
                yield ast.Compare(left, [*ops[:place], other, *ops[place + 1 :]], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in _ARITHMETIC and not _is_union(node):
            yield ast.BinOp(left, _ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Call(ast.Name("min" | "max"), [first, second], []):
            yield first
            yield second
        case ast.If(_, body, orelse):
            for value in (False, True):
                yield ast.If(ast.Constant(value), body, orelse)
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
    yield from _without(node)


def _without(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stays of a statement that is taken out, where something would still run."""
    match node:
        case ast.Return(value=ast.Constant(value=value)) if not value:
            return
        case ast.Return(value=value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Delete([ast.Name()]):
            return  # it only says that a parameter is not used
        case ast.Expr(ast.Call() | ast.Await()) | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.AugAssign():
            yield ast.Pass()
        case ast.Assign([target]) if not isinstance(target, ast.Name):
            yield ast.Pass()


def _is_first_value(holder: ast.AST, node: ast.AST) -> bool:
    match holder, node:
        case ast.FunctionDef(name="__init__"), ast.Assign(value=ast.Constant()):
            return True
    return False


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_union(node: ast.BinOp) -> bool:
    """Whether it is a union of types and no number."""
    sides = (node.left, node.right)
    return isinstance(node.op, ast.BitOr) and any(
        _is_none(side) or (isinstance(side, ast.Name) and side.id in ("str", "bytes", "int"))
        for side in sides
    )


def _words(node: ast.AST) -> str:
    """Return a node in one line."""
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else text[:57] + "..."
