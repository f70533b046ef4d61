"""Counts beyond those that a component lists: a distribution over everything that is legal.

A list holds what its author knew. So an axis that goes far takes its values from every octave of what is legal: the
power of two, one away from it, and a place in between that each case has for itself. A few cases have one axis beyond a
thousand, past the tables, tiles and grids of kernels; everything else of them is tiny, so that they stay cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import cycle, islice

from npudiff.model.constraints import Allowed, Joined, allows

FAR_COUNTS = (5, 6, 7, 9, 12, 13, 17, 33, 40, 48, 63, 65, 100, 127, 129, 257)
"""Counts that an axis has now and then: remainders of fours, eights and tiles, one away from what fits into a tile, a
table or a block, and the cores of devices."""

FAR_OCTAVES, HUGE_OCTAVES, GRID_OCTAVE = range(2, 10), range(10, 16), 16
"""Powers of two from which on a count is far, is huge, and leaves a grid of 65,535 blocks."""

GRID_WEIGHT = 12
"""A huge count is beyond a grid this many times as often as at any other power of two: three in four."""

GRID_REST = 2**12
"""How far beyond a grid a count goes at most: what is beyond is there, and cases stay cheap."""

DIMS = (72, 224, 512, 16, 8, 24, 40, 48, 112, 144, 160, 320, 384, 448)
"""Head dims of models, and multiples of eight that no model has."""

PLACES = 2**12
"""Places between two powers of two."""

Allows = Callable[[object], bool]


def far_values(legal: Allowed, place: int, other: int) -> Sequence[object]:
    """Return values of an axis that goes far; shrinking goes towards the first.

    Parameters
    ----------
    legal : collection
        Every value that the axis can have.
    place, other : int
        Where between powers of two this case has values, in ``range(PLACES)``; the second is for the second of sizes
        that are joined.
    """
    if isinstance(legal, Joined):
        return [text for text in dict.fromkeys(_joined(legal, place, other)) if text in legal]
    step = legal.step if isinstance(legal, range) else 1
    counts = sorted({*FAR_COUNTS, *(between(octave, place) for octave in FAR_OCTAVES)})
    return _legal([count * step for count in counts], legal)


def huge_values(legal: Allowed, place: int) -> Sequence[object]:
    """Return values of an axis beyond a thousand, most of them beyond 65,535 where they are legal.

    Parameters
    ----------
    legal : collection
        Every value that the axis can have.
    place : int
        Where between powers of two this case has values, in ``range(PLACES)``.
    """
    large = sorted(count for octave in HUGE_OCTAVES for count in (2**octave + 1, between(octave, place)))
    grids = [2**GRID_OCTAVE, 2**GRID_OCTAVE + 1, 2**GRID_OCTAVE + place * GRID_REST // PLACES]
    return _legal([*large, *grids * GRID_WEIGHT], legal)


def between(octave: int, place: int) -> int:
    """Return the number at a place between a power of two and the next."""
    return int(2**octave + (place << octave) // PLACES)


def _legal(counts: Sequence[int], legal: Allowed) -> Sequence[int]:
    return [count for count in counts if allows(legal, count)]


def _joined(legal: Joined, place: int, other: int) -> Iterator[str]:
    """Sizes joined, each of its own: all alike where that is one size, and no two alike."""
    sizes = [_dims(one, place if number % 2 == 0 else other) for number, one in enumerate(legal.sizes)]
    if not all(sizes):
        return
    if legal.short:
        yield from map(str, sizes[0])
    first, *rest = sizes
    turned = [islice(cycle(one), (3 * number + other) % len(one), None) for number, one in enumerate(rest, 1)]
    yield from ("/".join(map(str, parts)) for parts in zip(first, *turned, strict=False))


def _dims(legal: range, place: int) -> Sequence[int]:
    """Sizes of a head: of models, and any number up to 512, each now and then a multiple of eight."""
    anything = [between(octave, place) for octave in range(3, 9)]
    fitting: Collection[int] = [*DIMS, *anything, *(count // 8 * 8 for count in anything)]
    return [count for count in dict.fromkeys(fitting) if count in legal]
