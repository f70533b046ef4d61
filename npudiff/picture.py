"""A picture of where an output is wrong: error over bound of its elements, with the borders of its parts drawn in."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.compare import OutputComparison
from npudiff.pattern import coordinate_text

MOST_ROWS, MOST_COLUMNS = 96, 96
"""Cells of a picture; each shows the worst of the elements in it."""

PARTS = ("request", "page", "group", "expert", "section", "page offset", "head", "kv head", "matrix", "token")
"""Coordinates whose changes are drawn as borders, most important first."""

MOST_BORDERS = 24
"""Changes of a coordinate that are drawn; one that changes more often is not."""

_WIDTH, _LEFT, _TOP, _BOTTOM = 760, 130, 12, 40
_LEVELS = (0.0, 0.25, 0.5, 1.0, 10.0, 1000.0, math.inf)
_COLOURS = ("#e8eef4", "#c5d8ea", "#93b7d8", "#4a86b8", "#f2a65a", "#d1495b", "#3b0918")
LEVELS = len(_COLOURS)
_HATCH_NAME = "unspecified"
_NAMES = ("0", "up to 0.25", "up to 0.5", "up to 1: right", "up to 10: wrong", "up to 1000", "more, or not finite")


@dataclass(frozen=True)
class Grid:
    """What is drawn: the worst level of each cell, and where parts end.

    Attributes
    ----------
    levels : torch.Tensor
        int64 ``[rows, columns]``: the place in the scale, -1 where nothing is specified.
    elements : tuple of int
        Rows and columns of the output, before cells were made of them.
    borders : dict
        Name of a coordinate to the rows (of the output) before which it changes.
    sides : dict
        The same of columns.
    labels : tuple of str
        What the first of the borders' coordinates is in each of its parts.
    title : str
        What the picture shows, in words.
    """

    levels: torch.Tensor
    elements: tuple[int, int]
    borders: Mapping[str, Sequence[int]]
    sides: Mapping[str, Sequence[int]]
    labels: tuple[str, ...] = ()
    title: str = ""


def grid_of(output: OutputComparison, coordinates: Mapping[str, torch.Tensor]) -> Grid | None:
    """Return what is drawn of an output, or None if it has nothing to draw: rows are all axes but the last.

    Parameters
    ----------
    output : OutputComparison
        What was compared.
    coordinates : mapping
        Integer tensors that broadcast to the output.
    """
    ratio = output.ratio
    if ratio is None or not ratio.numel():
        return None
    flat = ratio.reshape(-1, ratio.shape[-1]) if ratio.dim() > 1 else ratio.reshape(1, -1)
    rows, columns = flat.shape
    level = torch.bucketize(flat.nan_to_num(nan=math.inf), torch.tensor(_LEVELS, dtype=flat.dtype))
    if output.bound is not None:
        unspecified = output.bound.expand(ratio.shape).isposinf().reshape(flat.shape)
        level = level.masked_fill(unspecified, -1)
    cells = _worst_of(_worst_of(level, MOST_ROWS).T, MOST_COLUMNS).T
    wide = {name: values.expand(ratio.shape).reshape(flat.shape) for name, values in coordinates.items()}
    borders = dict(_borders({name: values[:, 0] for name, values in wide.items()}))
    sides = dict(_borders({name: values[0] for name, values in wide.items()}))
    labels: tuple[str, ...] = ()
    for name, places in list(borders.items())[:1]:
        labels = tuple(f"{name} {coordinate_text(int(wide[name][place, 0]))}" for place in (0, *places))
    said = f"{output.name}: {int((ratio > 1).sum())} of {rows * columns} elements beyond their bound"
    return Grid(cells.clamp(max=len(_COLOURS) - 1), (rows, columns), borders, sides, labels, said)


def _worst_of(level: torch.Tensor, most: int) -> torch.Tensor:
    """The largest level of each stretch of rows, of which there are at most so many."""
    count = len(level)
    if count <= most:
        return level
    cell = torch.arange(count) * most // count
    worst = torch.full((most, level.shape[1]), -1, dtype=level.dtype)
    return worst.scatter_reduce(0, cell[:, None].expand(level.shape), level, "amax")


def coarser(grid: Grid, most: int) -> Grid:
    """Return the grid with at most so many rows and columns of cells; each shows the worst of what it covers."""
    return replace(grid, levels=_worst_of(_worst_of(grid.levels, most).T, most).T)


def _borders(lines: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, list[int]]]:
    """Yield the coordinates that change along a line, and where; not those that change nearly everywhere."""
    for name in PARTS:
        if name in lines and len(lines[name]) > 1:
            changes = (lines[name][1:] != lines[name][:-1]).nonzero().flatten() + 1
            if 0 < len(changes) <= min(MOST_BORDERS, len(lines[name]) // 2):
                yield name, changes.tolist()


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
