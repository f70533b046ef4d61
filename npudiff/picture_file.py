"""The pictures of a finding as numbers, so that another page can draw them again.

An SVG from elsewhere could hold anything, and so would have to be checked like a program. Tensors would have to be put
into the component's words again by building the inputs of a case, which may be large, and the tensors of the case as it
was drawn are not kept. A grid is a few kilobytes of levels and places, and every one of them can be checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from npudiff.errors import UsageError
from npudiff.findings import read_plain_file
from npudiff.picture import LEVELS, MOST_BORDERS, MOST_COLUMNS, MOST_ROWS, PARTS, Grid
from npudiff.text import clipped, printable

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
        path.unlink(missing_ok=True)
        return
    content = {
        "schema_version": SCHEMA_VERSION,
        "pictures": [{"caption": caption, **_plain(grid)} for caption, grid in pictures[:MOST_PICTURES]],
    }
    partial = folder / (PICTURE_FILE + ".partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    partial.replace(path)


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
        if content["schema_version"] != SCHEMA_VERSION:
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
