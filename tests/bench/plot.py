"""Pictures of a bench run: one panel a table with a bar for each contender, or curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.figures import Spread, Table, spread
from tests.bench.process import BenchError

_OURS, _OTHERS = "#c8553d", "#8fa6b2"


class Curve(NamedTuple):
    """Figures that depend on one number; `panel` is what it shares with other curves."""

    panel: str
    label: str
    points: dict[float, Spread]


def draw(tables: Sequence[Table], path: Path) -> None:
    """Write the picture. Raises BenchError where matplotlib is missing."""
    pyplot = _pyplot()
    shown = [table for table in tables if any(table.values(name) for name in table.rounds)]
    if not shown:
        raise BenchError("there is nothing to plot: no contender finished")
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(6.5 * columns, 2.8 * rows), squeeze=False, layout="constrained"
    )
    panels = list(grid.flat)
    for panel, table in zip(panels, shown, strict=False):
        _panel(panel, table)
    for panel in panels[len(shown) :]:
        panel.remove()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_curves(curves: Sequence[Curve], axes: tuple[str, str], path: Path) -> None:
    """Write a picture of curves; equal figures make equal files. Raises BenchError as `draw`."""
    pyplot = _pyplot()
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    # Text as text, names that are no random ones, no date: small, and the same when drawn again.
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dmcopy", "font.size": 9}):
        figure, grid = pyplot.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 2.8), squeeze=False, layout="constrained"
        )
        for place, panel in zip(panels, grid.flat, strict=True):
            _curves(panel, [curve for curve in curves if curve.panel == place])
            panel.set_title(place, fontsize=10)
            panel.set_xlabel(axes[0])
        grid.flat[0].set_ylabel(axes[1])
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise BenchError("the plot needs matplotlib (pip install 'dmcopy[plot]')") from None
    return pyplot


def _curves(panel: Any, curves: Sequence[Curve]) -> None:
    for curve, color in zip(curves, (_OTHERS, _OURS), strict=False):
        found = curve.points.values()
        medians = [one.median for one in found]
        panel.plot(list(curve.points), medians, color=color, marker="o", label=curve.label)
        below, above = [one.low for one in found], [one.high for one in found]
        panel.fill_between(list(curve.points), below, above, color=color, alpha=0.25, linewidth=0)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)


def _panel(panel: Any, table: Table) -> None:
    found = {name: spread(table.values(name)) for name in table.rounds}
    bars = {name: one for name, one in found.items() if one is not None}
    medians = [one.median for one in bars.values()]
    below = [one.median - one.low for one in bars.values()]
    above = [one.high - one.median for one in bars.values()]
    colors = [_OURS if name.startswith("dmcopy") else _OTHERS for name in bars]
    panel.barh(list(bars), medians, xerr=[below, above], color=colors, capsize=3)
    panel.invert_yaxis()  # the first row of the table at the top, as in the text
    panel.set_title(table.title, fontsize=10)
    panel.set_xlabel(f"{table.unit.value} (median and range)", fontsize=9)
    panel.tick_params(labelsize=9)
