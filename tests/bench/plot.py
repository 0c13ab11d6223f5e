"""A picture of a bench run: one panel a table, a bar for each contender with its range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.figures import Table, spread
from tests.bench.process import BenchError

_OURS, _OTHERS = "#c8553d", "#8fa6b2"


def draw(tables: Sequence[Table], path: Path) -> None:
    """Write the picture. Raises BenchError where matplotlib is missing."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise BenchError("the plot needs matplotlib (pip install 'dmcopy[plot]')") from None
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
