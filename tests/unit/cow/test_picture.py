"""Pictures of a store, to the byte: numbers and colours in which an error would not be seen."""

from __future__ import annotations

import sys
from array import array
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from dmcopy.cow.density import Density
from dmcopy.cow.picture import _level, to_png, to_svg, to_text

# Cells of twelve chunks of 4 KiB, two in a row, the last one of four: none, some, 1/3, 2/3, all.
DENSITY = Density(8, 52, 12, 2, array("Q", [0, 1, 4, 8, 4]))

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="104" height="84" \
font-family="sans-serif" font-size="11">
<title>17 of 52 chunks changed: 68 KiB, 32.7%</title>
<rect width="100%" height="100%" fill="white"/>
<text x="8" y="18" font-size="13">17 of 52 chunks changed: 68 KiB, 32.7%</text>
<text x="70" y="38" font-size="8" text-anchor="end">0 B</text>
<rect x="76" y="30" width="7" height="7" fill="#eceff4"/>
<rect x="84" y="30" width="7" height="7" fill="#deb5ac"/>
<rect x="76" y="38" width="7" height="7" fill="#d69280"/>
<rect x="84" y="38" width="7" height="7" fill="#ca6446"/>
<text x="70" y="54" font-size="8" text-anchor="end">192 KiB</text>
<rect x="76" y="46" width="7" height="7" fill="#bf360c"/>
<rect x="76" y="64" width="7" height="7" fill="#eceff4"/>
<rect x="84" y="64" width="7" height="7" fill="#d89e8e"/>
<rect x="92" y="64" width="7" height="7" fill="#d07b63"/>
<rect x="100" y="64" width="7" height="7" fill="#c75938"/>
<rect x="108" y="64" width="7" height="7" fill="#bf360c"/>
<text x="124" y="72">none to all changed; a block is 48 KiB (12 chunks)</text>
</svg>
"""


def test_as_text() -> None:
    assert to_text(DENSITY).splitlines() == [
        "17 of 52 chunks changed: 68 KiB, 32.7%",
        "      0 B ·░",
        "   96 KiB ▒▓",
        "  192 KiB █",
        "· none  ░ some  ▒ half  ▓ most  █ all changed    a block is 48 KiB (12 chunks)",
    ]


def test_as_svg() -> None:
    assert to_svg(DENSITY) == SVG


def test_how_much_of_a_cell_has_changed() -> None:
    assert (DENSITY.rows, DENSITY.total) == (3, 17)
    assert [DENSITY.share(cell) for cell in range(5)] == [0, 1 / 12, 4 / 12, 8 / 12, 1]


@pytest.mark.parametrize(
    ("rows", "ticks", "height"),
    [(3, [0, 1, 2], 16), (15, [*range(15)], 76), (40, [*range(0, 40, 5)], 201)],
)
def test_a_png_has_few_positions_beside_it(
    monkeypatch: pytest.MonkeyPatch, rows: int, ticks: list[int], height: int
) -> None:
    """As matplotlib is told: it need not be there, and what it draws is its own.

    The colours are of none to all, whatever there is; the cells are square, in a width of 1200
    pixels, with an inch for what is above and below them.
    """
    mpl, pyplot = MagicMock(spec=ModuleType("matplotlib")), MagicMock()
    mpl.use, mpl.pyplot = MagicMock(), pyplot
    figure, axes = MagicMock(), MagicMock()
    pyplot.subplots.return_value = figure, axes
    monkeypatch.setitem(sys.modules, "matplotlib", mpl)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", pyplot)
    density = Density(8, rows * 24 - 12, 12, 2, array("Q", [4] * (2 * rows - 1)))
    figure.savefig.side_effect = lambda file, **_: file.write(b"a picture")
    assert to_png(density) == b"a picture"
    assert mpl.use.call_args.args == ("agg",)
    size, dots = pyplot.subplots.call_args.kwargs["figsize"], figure.savefig.call_args.kwargs
    assert (size[0] * dots["dpi"], size[1], dots["format"]) == (1200, height, "png")
    (grid,), scale = axes.imshow.call_args
    assert (scale["vmin"], scale["vmax"], scale["aspect"]) == (0, 1, "equal")
    assert [len(row) for row in grid] == [2] * rows
    assert grid[0] == [1 / 3, 1 / 3]
    assert grid[-1][1] != grid[-1][1], "no number where the origin has ended"
    (places, names), _ = axes.set_yticks.call_args
    assert list(places) == ticks
    assert names[:2] == ["0 B", "96 KiB"] if rows < 16 else ["0 B", "480 KiB"]
    assert pyplot.close.called


@pytest.mark.parametrize(
    ("share", "level"),
    [(0, 0), (0.001, 1), (0.3, 1), (1 / 3, 2), (0.6, 2), (2 / 3, 3), (0.7, 3), (0.999, 3), (1, 4)],
)
def test_the_ends_are_for_none_and_all_and_what_is_between_in_thirds(
    share: float, level: int
) -> None:
    """As the legend under the picture says; one chunk of many must be seen, one that lacks, too."""
    assert _level(share) == level
