"""A store's density drawn: as text for a terminal, as SVG, or as PNG."""

from __future__ import annotations

import io
import math
from typing import Final
from xml.sax.saxutils import escape

from dmcopy.cow.density import Density
from dmcopy.errors import MissingError
from dmcopy.units import SECTOR_SHIFT, format_bytes

SHADES: Final = "·░▒▓█"
ASCII_SHADES: Final = ".-+x#"
_LEGEND: Final = ("none", "some", "half", "most", "all changed")
LABEL: Final = 10
"""Columns that the position in front of each row takes."""

_CELL: Final = 8
_MARGIN: Final = 76
_EMPTY_COLOUR, _FULL_COLOUR = (236, 239, 244), (191, 54, 12)


def to_text(density: Density, *, shades: str = SHADES) -> str:
    """Return rows of blocks, the position in front of each, a title and a legend."""
    lines = [title(density)]
    for row in range(density.rows):
        first = row * density.width
        cells = range(first, min(first + density.width, len(density.changed)))
        blocks = "".join(shades[_level(density.share(cell))] for cell in cells)
        lines.append(f"{_position(density, first):>{LABEL - 1}} {blocks}")
    said = "  ".join(f"{shade} {what}" for shade, what in zip(shades, _LEGEND, strict=True))
    lines.append(f"{said}    a block is {_cell(density)}")
    return "\n".join(lines) + "\n"


def title(density: Density) -> str:
    """Return what the picture shows, in one line."""
    percent = 100 * density.total / density.chunks if density.chunks else 0
    size = format_bytes(density.total * density.chunk_size << SECTOR_SHIFT)
    return f"{density.total} of {density.chunks} chunks changed: {size}, {percent:.3g}%"


def to_svg(density: Density) -> str:
    """Return the picture as an SVG document."""
    width = _MARGIN + density.width * _CELL + 12
    bottom = 30 + density.rows * _CELL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + 30}" '
        f'font-family="sans-serif" font-size="11">',
        f"<title>{escape(title(density))}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" font-size="13">{escape(title(density))}</text>',
    ]
    for row in range(density.rows):
        first, top = row * density.width, 30 + row * _CELL
        if row % 2 == 0:
            text = escape(_position(density, first))
            parts.append(
                f'<text x="{_MARGIN - 6}" y="{top + 8}" font-size="8" text-anchor="end">{text}'
                f"</text>"
            )
        for cell in range(first, min(first + density.width, len(density.changed))):
            left = _MARGIN + (cell - first) * _CELL
            parts.append(
                f'<rect x="{left}" y="{top}" width="{_CELL - 1}" height="{_CELL - 1}" '
                f'fill="{_colour(density.share(cell))}"/>'
            )
    for place, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        parts.append(
            f'<rect x="{_MARGIN + place * _CELL}" y="{bottom + 10}" width="{_CELL - 1}" '
            f'height="{_CELL - 1}" fill="{_colour(share)}"/>'
        )
    legend = f"none to all changed; a block is {_cell(density)}"
    left = _MARGIN + 6 * _CELL
    parts.append(f'<text x="{left}" y="{bottom + 18}">{escape(legend)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def to_png(density: Density) -> bytes:
    """Return the picture as a PNG file. Raises MissingError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingError(
            "matplotlib is not installed, which draws PNG: pip install 'dmcopy[plot]', or take "
            "--svg, which needs nothing"
        ) from None
    mpl.use("agg")
    from matplotlib import pyplot as plt

    cells = [density.share(cell) for cell in range(len(density.changed))]
    cells += [math.nan] * (density.rows * density.width - len(cells))
    grid = [cells[start : start + density.width] for start in range(0, len(cells), density.width)]
    figure, axes = plt.subplots(figsize=(10, max(1.5, 10 * density.rows / density.width + 1)))
    image = axes.imshow(grid or [[math.nan]], cmap="OrRd", vmin=0, vmax=1, aspect="equal")
    axes.set_title(title(density), fontsize="medium")
    ticks = range(0, density.rows, max(1, density.rows // 8))
    axes.set_yticks(
        ticks, [_position(density, row * density.width) for row in ticks], fontsize="small"
    )
    axes.set_xticks([])
    axes.set_xlabel(f"a block is {_cell(density)}", fontsize="small")
    figure.colorbar(image, ax=axes, label="changed", shrink=0.8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return drawn.getvalue()


def _level(share: float) -> int:
    """Return the shade for a share: the ends are kept for nothing and everything."""
    if share in (0, 1):
        return 4 if share else 0
    return 1 if share < 1 / 3 else 2 if share < 2 / 3 else 3


def _colour(share: float) -> str:
    level = 0.25 + 0.75 * share if share else 0  # the least change still has to be seen
    channels = (
        round(empty + (full - empty) * level)
        for empty, full in zip(_EMPTY_COLOUR, _FULL_COLOUR, strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _position(density: Density, cell: int) -> str:
    return format_bytes(cell * density.per_cell * density.chunk_size << SECTOR_SHIFT)


def _cell(density: Density) -> str:
    size = format_bytes(density.per_cell * density.chunk_size << SECTOR_SHIFT)
    return f"{size} ({density.per_cell} chunk{'s' if density.per_cell > 1 else ''})"
