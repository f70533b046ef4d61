"""Draws where an output is wrong: error over bound of its elements, with the borders of its parts."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from npudiff.findings.picture import Grid, grid_of
from npudiff.model.component import OutputComparison
from npudiff.show.rendering import SafeHtml
from npudiff.text import counted

_TOP, _MOST_WIDE, _MOST_HIGH, _LARGEST_CELL = 12, 630, 480, 24
_MARGIN, _LABELS = 8, 130
"""Room left of the cells: without labels of parts, and with them."""
_LINE, _LEGEND_COLUMN = 20, 135
_FONT = 12
_LEAST_BETWEEN_LABELS = 12
_COLOURS = ("#e8eef4", "#c5d8ea", "#93b7d8", "#4a86b8", "#f2a65a", "#d1495b", "#3b0918")
_NAMES = ("0", "up to 0.25", "up to 0.5", "up to 1: right", "up to 10: wrong", "up to 1000", "more, or not finite")
_HATCH_ID = "unspecified"
_HATCH = (
    '<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<rect width="6" height="6" fill="#fff"/><path d="M0,6L6,0" stroke="#bbb"/></pattern></defs>'
)


def picture(output: OutputComparison, coordinates: Mapping[str, torch.Tensor]) -> str:
    """Return the picture of an output as SVG, or an empty text if there is nothing to draw."""
    grid = grid_of(output, coordinates)
    return "" if grid is None else drawn(grid)


def drawn(grid: Grid, number: int = 0) -> SafeHtml:
    """Return a grid as SVG, with a title that says in words what it shows.

    Parameters
    ----------
    grid : Grid
        What is drawn.
    number : int
        Number of the picture on its page, which makes its ids unique there.
    """
    rows, columns = grid.levels.shape
    cell = max(2.0, min(_LARGEST_CELL, _MOST_WIDE / columns)), max(2.0, min(_LARGEST_CELL, _MOST_HIGH / rows))
    box = _Box(_LABELS if grid.labels else _MARGIN, _TOP, columns * cell[0], rows * cell[1])
    axes = [_axis(grid.elements[0], "row", grid.borders), _axis(grid.elements[1], "column", grid.sides)]
    below = box.bottom + _LINE
    legend = below + (len(axes) + 0.5) * _LINE
    width = max(box.right, 2 * _LEGEND_COLUMN, box.left + 0.55 * _FONT * max(map(len, axes))) + _MARGIN
    height = legend + 3.5 * _LINE
    hatch = f"{_HATCH_ID}-{number}" if number else _HATCH_ID
    title = html.escape(grid.title)
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width / _FONT:.1f}em"'
    return SafeHtml(
        "".join(
            (
                f'<svg {size} role="img" aria-label="{title}"><title>{title}</title>',
                _HATCH.format(name=hatch),
                *_cells(grid.levels, cell, box, f"url(#{hatch})"),
                *_lines(grid, box),
                *_labels(grid, box),
                *(f'<text x="{box.left}" y="{below + n * _LINE:.0f}">{axis}</text>' for n, axis in enumerate(axes)),
                *_legend(legend, f"url(#{hatch})"),
                "</svg>",
            )
        )
    )


class _Box(NamedTuple):
    """The place of the cells."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def _axis(elements: int, noun: str, borders: Mapping[str, object]) -> str:
    """Return an axis in words, as HTML."""
    return html.escape(counted(elements, noun) + (f", lines between {', '.join(borders)}" if borders else ""))


def _cells(levels: torch.Tensor, cell: tuple[float, float], box: _Box, unspecified: str) -> Iterator[str]:
    """Yield a rectangle per stretch of equal cells."""
    for row, line in enumerate(levels.tolist()):
        start = 0
        for end in range(1, len(line) + 1):
            if end == len(line) or line[end] != line[start]:
                fill = unspecified if line[start] < 0 else _COLOURS[line[start]]
                x, y = box.left + start * cell[0], box.top + row * cell[1]
                yield (
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{(end - start) * cell[0] + 0.2:.1f}" '
                    f'height="{cell[1] + 0.2:.1f}" fill="{fill}"/>'
                )
                start = end


def _lines(grid: Grid, box: _Box) -> Iterator[str]:
    """Yield the borders of parts."""
    for number, places in enumerate(grid.borders.values()):
        for place in places:
            y = box.top + box.height * place / grid.elements[0]
            yield _line(f"M{box.left - 6},{y:.1f}H{box.right:.1f}", number)
    for number, places in enumerate(grid.sides.values()):
        for place in places:
            x = box.left + box.width * place / grid.elements[1]
            yield _line(f"M{x:.1f},{box.top}V{box.bottom + 6:.1f}", number)


def _labels(grid: Grid, box: _Box) -> Iterator[str]:
    """Yield the labels of the first coordinate's parts, but for those that would lie on the one above."""
    starts = [0, *next(iter(grid.borders.values()), ())]
    above = 0.0
    for start, end, label in zip(starts, [*starts[1:], grid.elements[0]], grid.labels, strict=False):
        y = box.top + box.height * (start + end) / 2 / grid.elements[0] + 4
        if y - above >= _LEAST_BETWEEN_LABELS:
            above = y
            yield f'<text x="{box.left - 8}" y="{y:.1f}" text-anchor="end" class="small">{html.escape(label)}</text>'


def _line(path: str, number: int) -> str:
    """Return a line that is seen on light and on dark cells; dashed unless it is of the first coordinate."""
    dashes = f' stroke-dasharray="{2 + 2 * number} 3"' if number else ""
    return f'<path d="{path}" stroke="#fff" stroke-width="3"/><path d="{path}" stroke="#222" stroke-width="1"{dashes}/>'


def _legend(top: float, unspecified: str) -> Iterator[str]:
    """Yield the colours and what they mean, in two columns: right values, and wrong or unspecified ones."""
    for place, (colour, name) in enumerate(zip((*_COLOURS, unspecified), (*_NAMES, "not specified"), strict=True)):
        column, row = divmod(place, 4)
        x, y = _MARGIN + column * _LEGEND_COLUMN, top + row * _LINE
        yield f'<rect x="{x}" y="{y - 10:.0f}" width="12" height="12" fill="{colour}" stroke="#888"/>'
        yield f'<text x="{x + 16}" y="{y:.0f}" class="small">{name}</text>'
