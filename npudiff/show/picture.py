"""Pictures of where an output is wrong, drawn and kept: error over bound of its elements, and borders of its parts.

A picture is kept as numbers, so that another page can draw it again. An SVG from elsewhere could hold anything, and so
would have to be checked like a program. Tensors would have to be put into the component's words again by building the
inputs of a case, which may be large, and the tensors of the case as it was drawn are not kept. A grid is a few
kilobytes of levels and places, and every one of them can be checked.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from npudiff.errors import UsageError
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import remove_file, write_file
from npudiff.judge.pattern import coordinate_text
from npudiff.model.component import OutputComparison
from npudiff.show.rendering import SafeHtml
from npudiff.text import clipped, counted, printable

MOST_ROWS, MOST_COLUMNS = 96, 96
"""Cells of a picture; each shows the worst of the elements in it."""


PARTS = ("request", "page", "group", "expert", "section", "page offset", "head", "kv head", "matrix", "token")
"""Coordinates whose changes are drawn as borders, most important first."""


MOST_BORDERS = 24
"""Changes of a coordinate that are drawn; one that changes more often is not."""


_LEVELS = (0.0, 0.25, 0.5, 1.0, 10.0, 1000.0, math.inf)
LEVELS = len(_LEVELS)


@dataclass(frozen=True)
class Grid:
    """What is drawn: the worst level of each cell, and where parts end."""

    levels: torch.Tensor
    """int64 ``[rows, columns]``: the place in the scale, -1 where nothing is specified."""
    elements: tuple[int, int]
    """Rows and columns of the output, before cells were made of them."""
    borders: Mapping[str, Sequence[int]]
    """Name of a coordinate to the rows (of the output) before which it changes."""
    sides: Mapping[str, Sequence[int]]
    """The same of columns."""
    labels: tuple[str, ...] = ()
    """What the first of the borders' coordinates is in each of its parts."""
    title: str = ""
    """What the picture shows, in words."""


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
    return Grid(cells.clamp(max=LEVELS - 1), (rows, columns), borders, sides, labels, said)


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


PICTURE_FILE = "picture.json"
SCHEMA_VERSION = 1

MAX_BYTES = 2**20
MOST_PICTURES = 8
"""Pictures that a finding keeps."""

_SIGNS = "-0123456789"[: LEVELS + 1]
"""A sign per level; the first one stands for what is not specified. Any other is refused where it is looked up."""

_LONGEST_LABEL, _LONGEST_TEXT = 40, 500
_MOST_ELEMENTS = 2**53


def write_pictures(folder: Path, pictures: Sequence[tuple[str, Grid]]) -> None:
    """Write captions and grids into the folder of a finding; without any, no file is left there."""
    path = folder / PICTURE_FILE
    if not pictures:
        remove_file(path, within=folder.parent)
        return
    content = {
        "schema_version": SCHEMA_VERSION,
        "pictures": [{"caption": caption, **_plain(grid)} for caption, grid in pictures[:MOST_PICTURES]],
    }
    write_file(path, json.dumps(content) + "\n", within=folder.parent)


def _plain(grid: Grid) -> dict[str, Any]:
    return {
        "title": grid.title,
        "levels": ["".join(_SIGNS[level + 1] for level in line) for line in grid.levels.tolist()],
        "elements": list(grid.elements),
        "borders": {name: list(places) for name, places in grid.borders.items()},
        "sides": {name: list(places) for name, places in grid.sides.items()},
        "labels": list(grid.labels),
    }


def read_pictures(folder: Path) -> list[tuple[str, Grid]]:
    """Return captions and grids, or none if there are none that npudiff can have written."""
    try:
        content = json.loads(read_plain_file(folder / PICTURE_FILE, MAX_BYTES).decode("utf-8", errors="replace"))
        version = content["schema_version"]
        if type(version) is not int or version != SCHEMA_VERSION:
            return []
        return [(_text(one["caption"]), _grid(one)) for one in content["pictures"][:MOST_PICTURES]]
    except (UsageError, OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return []


def _grid(plain: Mapping[str, Any]) -> Grid:
    lines = [_text(line, MOST_COLUMNS) for line in _list(plain["levels"], MOST_ROWS)]
    columns = len(lines[0]) if lines else 0
    if not columns or any(len(line) != columns for line in lines):
        raise ValueError("levels that are no rectangle")
    rows, wide = (_number(one, _MOST_ELEMENTS) for one in _list(plain["elements"], 2))
    if rows < len(lines) or wide < columns:
        raise ValueError("more cells than elements")
    return Grid(
        torch.tensor([[_SIGNS.index(sign) - 1 for sign in line] for line in lines]),
        (rows, wide),
        _places(plain["borders"], rows),
        _places(plain["sides"], wide),
        tuple(clipped(_text(label), _LONGEST_LABEL) for label in _list(plain["labels"], MOST_BORDERS + 1)),
        _text(plain["title"]),
    )


def _places(plain: Any, most: int) -> dict[str, list[int]]:  # noqa: ANN401 - whatever JSON says
    if not isinstance(plain, dict) or set(plain) - set(PARTS):
        raise ValueError("borders of unknown parts")
    return {name: [_number(place, most) for place in _list(places, MOST_BORDERS)] for name, places in plain.items()}


def _list(plain: Any, most: int) -> list[Any]:  # noqa: ANN401
    if not isinstance(plain, list) or len(plain) > most:
        raise ValueError("not a list, or too long a one")
    return plain


def _number(plain: object, most: int) -> int:
    if type(plain) is not int or not 1 <= plain <= most:
        raise ValueError("not a number of elements")
    return plain


def _text(plain: object, most: int = _LONGEST_TEXT) -> str:
    if not isinstance(plain, str):
        raise ValueError("not text")
    return printable(plain[:most])


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
