"""A picture of where an output is wrong: error over bound of its elements, with the borders of its parts drawn in."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

import torch

from npudiff.findings.picture import Grid, grid_of
from npudiff.model.comparison import OutputComparison

_WIDTH, _LEFT, _TOP, _BOTTOM = 760, 130, 12, 40
_COLOURS = ("#e8eef4", "#c5d8ea", "#93b7d8", "#4a86b8", "#f2a65a", "#d1495b", "#3b0918")
_HATCH_NAME = "unspecified"
_NAMES = ("0", "up to 0.25", "up to 0.5", "up to 1: right", "up to 10: wrong", "up to 1000", "more, or not finite")


def picture(output: OutputComparison, coordinates: Mapping[str, torch.Tensor]) -> str:
    """Return the picture as SVG, with a title that says in words what it shows; empty if there is nothing to draw."""
    grid = grid_of(output, coordinates)
    return "" if grid is None else drawn(grid)


def drawn(grid: Grid, number: int = 0) -> str:
    """Return a grid as SVG.

    Parameters
    ----------
    grid : Grid
        What is drawn.
    number : int
        Which picture of its page it is: what others refer to needs a name of its own in a page.
    """
    rows, columns = grid.levels.shape
    width = _WIDTH - _LEFT
    cell = max(2.0, min(24.0, width / columns)), max(2.0, min(24.0, 480 / rows))
    size = columns * cell[0], rows * cell[1]
    height = _TOP + size[1] + _BOTTOM + 22
    hatch = f"{_HATCH_NAME}-{number}" if number else _HATCH_NAME
    return "".join(
        (
            f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{html.escape(grid.title, quote=True)}">',
            f"<title>{html.escape(grid.title)}</title>{_HATCH.format(name=hatch)}",
            *_cells(grid.levels, cell, f"url(#{hatch})"),
            *_lines(grid, size),
            *_axes(grid, size),
            *_legend(_TOP + size[1] + _BOTTOM, f"url(#{hatch})"),
            "</svg>",
        )
    )


_HATCH = (
    '<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" fill="#fff"/><path d="M0,6L6,0" stroke="#bbb"/></pattern></defs>'
)


def _cells(levels: torch.Tensor, cell: tuple[float, float], unspecified: str) -> Iterator[str]:
    """Yield a rectangle per stretch of cells that are alike."""
    for row, line in enumerate(levels.tolist()):
        start = 0
        for place in range(1, len(line) + 1):
            if place == len(line) or line[place] != line[start]:
                fill = unspecified if line[start] < 0 else _COLOURS[line[start]]
                x, y = _LEFT + start * cell[0], _TOP + row * cell[1]
                yield (
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{(place - start) * cell[0] + 0.2:.1f}" '
                    f'height="{cell[1] + 0.2:.1f}" fill="{fill}"/>'
                )
                start = place


def _lines(grid: Grid, size: tuple[float, float]) -> Iterator[str]:
    """Yield the borders of parts: of the most important coordinate in full, of others dashed."""
    right, bottom = _LEFT + size[0], _TOP + size[1]
    for number, (_, places) in enumerate(grid.borders.items()):
        for place in places:
            y = _TOP + size[1] * place / grid.elements[0]
            yield from _line(f"M{_LEFT - 6},{y:.1f}H{right:.1f}", number)
    for number, (_, places) in enumerate(grid.sides.items()):
        for place in places:
            x = _LEFT + size[0] * place / grid.elements[1]
            yield from _line(f"M{x:.1f},{_TOP}V{bottom + 6:.1f}", number)
    starts = [0, *next(iter(grid.borders.values()), ())]
    for start, end, label in zip(starts, [*starts[1:], grid.elements[0]], grid.labels, strict=False):
        y = _TOP + size[1] * (start + end) / 2 / grid.elements[0]
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" class="small">{html.escape(label)}</text>'


def _line(path: str, number: int) -> Iterator[str]:
    """Yield a line that is seen on light and on dark cells; dashed unless it is of the first coordinate."""
    dashes = f' stroke-dasharray="{2 + 2 * number} 3"' if number else ""
    yield f'<path d="{path}" stroke="#fff" stroke-width="3"/><path d="{path}" stroke="#222" stroke-width="1"{dashes}/>'


def _axes(grid: Grid, size: tuple[float, float]) -> Iterator[str]:
    rows, columns = grid.elements
    borders = f", lines between {', '.join(grid.borders)}" if grid.borders else ""
    sides = f", lines between {', '.join(grid.sides)}" if grid.sides else ""
    middle = _TOP + size[1] / 2
    yield f'<text x="{_LEFT}" y="{_TOP + size[1] + 18:.0f}">{columns} columns{html.escape(sides)}</text>'
    yield (
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{rows} rows{html.escape(borders)}</text>"
    )


def _legend(top: float, unspecified: str) -> Iterator[str]:
    x = 4.0
    for colour, name in zip((*_COLOURS, unspecified), (*_NAMES, "not specified"), strict=True):
        yield f'<rect x="{x:.0f}" y="{top:.0f}" width="12" height="12" fill="{colour}" stroke="#888"/>'
        yield f'<text x="{x + 16:.0f}" y="{top + 11:.0f}" class="small">{name}</text>'
        x += 24 + 5.6 * len(name)
