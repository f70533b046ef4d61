"""The pictures of a finding as numbers, so that another page can draw them again.

An SVG from elsewhere could hold anything, and so would have to be checked like a program. Tensors would have to be put
into the component's words again by building the inputs of a case, which may be large, and the tensors of the case as it
was drawn are not kept. A grid is a few kilobytes of levels and places, and every one of them can be checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from npudiff.errors import UsageError
from npudiff.files.reading import read_plain_file
from npudiff.files.writing import remove_file, write_file
from npudiff.judge.pattern import coordinate_text
from npudiff.model.comparison import OutputComparison
from npudiff.text import clipped, printable

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
