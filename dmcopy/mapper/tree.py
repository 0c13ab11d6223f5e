"""How mapped devices stand on each other, and what they stand on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dmcopy.mapper.base import DmInfo, Mapper


@dataclass(frozen=True, slots=True)
class Node:
    """A device and what its table uses; `info` is None for a device that is not mapped."""

    name: str
    devno: str
    info: DmInfo | None
    below: tuple[Node, ...] = ()


def with_deps(mapper: Mapper) -> list[DmInfo]:
    """Return every device with the devices under it."""
    devices = mapper.ls()
    deps = mapper.all_deps() if devices else {}
    return [replace(info, deps=deps.get(info.name, ())) for info in devices]


def tree(devices: list[DmInfo]) -> list[Node]:
    """Return the devices that nothing stands on, each with all that it stands on."""
    by_number = {info.devno: info for info in devices}
    used = {number for info in devices for number in info.deps}
    return [_node(info.devno, by_number) for info in devices if info.devno not in used]


def top_down(devices: list[DmInfo]) -> list[DmInfo]:
    """Return the devices in an order in which they can be removed."""
    found: list[DmInfo] = []
    left = list(devices)
    while left:
        used = {number for info in left for number in info.deps}
        # A table cannot use itself, so something is always on top; `or` is for a list that lies.
        tops = [info for info in left if info.devno not in used] or left
        found += tops
        left = [info for info in left if info not in tops]
    return found


def draw(nodes: list[Node]) -> Iterator[str]:
    """Yield the lines of a picture of the tree, in the way of `dmsetup ls --tree`."""
    for node in nodes:
        yield _label(node)
        yield from _draw_below(node, "")


def _draw_below(node: Node, indent: str) -> Iterator[str]:
    for index, one in enumerate(node.below):
        last = index == len(node.below) - 1
        yield f"{indent} {'└─' if last else '├─'}{_label(one)}"
        yield from _draw_below(one, f"{indent} {'  ' if last else '│ '}")


def _label(node: Node) -> str:
    return " ".join(filter(None, [node.name, f"({node.devno})"]))


def _node(devno: str, by_number: dict[str, DmInfo]) -> Node:
    info = by_number.get(devno)
    if info is None:
        return Node("", devno, None)
    return Node(info.name, devno, info, tuple(_node(dep, by_number) for dep in info.deps))
