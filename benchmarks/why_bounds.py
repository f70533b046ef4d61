"""Write the pictures and numbers of docs/why-bounds.md: a tolerance beside a bound, on the same kernels.

python -m benchmarks.why_bounds
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from npudiff.reference.dynamic_quant import DynamicQuantInputs, dynamic_quant
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.sliding_attention import SlidingAttentionInputs, sliding_attention

FOLDER = Path(__file__).parent.parent / "docs" / "images"

KEYS = (4, 16, 64, 256, 1024, 4096)
PAGE = 128
ATOL, RTOL = 1e-2, 1e-2
"""What tests of attention in bfloat16 usually allow."""


@dataclass(frozen=True)
class OneKeyMore:
    """A decode whose window is one key too wide, at several lengths of history."""

    keys: int
    error: float
    """The largest error of an element."""
    tolerance: float
    """What ``allclose`` allows there."""
    bound: float
    """What a right kernel may be off by there."""

    @property
    def over_tolerance(self) -> float:
        """Error over tolerance: above 1 it is found."""
        return self.error / self.tolerance

    @property
    def over_bound(self) -> float:
        """Error over bound."""
        return self.error / self.bound


def one_key_more() -> list[OneKeyMore]:
    """Compare a window that is one key too wide with a right one, in bfloat16."""
    found = []
    for keys in KEYS:
        right = _attention(keys)
        wrong = replace(right, window=keys + 1)
        expected, given = sliding_attention(right)["output"], sliding_attention(wrong)["output"]
        actual = given.value.to(torch.bfloat16).to(torch.float64)
        error = (actual - expected.value).abs()
        worst = int((error / expected.bound).argmax())
        value, bound = expected.value.flatten()[worst], expected.bound.flatten()[worst]
        found.append(OneKeyMore(keys, float(error.flatten()[worst]), ATOL + RTOL * abs(float(value)), float(bound)))
    return found


def _attention(keys: int) -> SlidingAttentionInputs:
    """Decode of one token with a window of so many keys, and one more key behind it."""
    random = torch.Generator().manual_seed(keys)
    pages = -(-(keys + 1) // PAGE)
    cache = torch.randn(2, pages + 1, PAGE, 1, 128, generator=random).to(torch.bfloat16)
    table = torch.arange(1, pages + 1, dtype=torch.int32).view(1, -1)
    query = torch.randn(1, 4, 128, generator=random).to(torch.bfloat16)
    pool = PagedKV(cache[0], cache[1], table)
    return SlidingAttentionInputs(query, pool, None, (1,), (keys + 1,), keys, 128**-0.5, None)


ROWS, COLUMNS = 512, 4096


@dataclass(frozen=True)
class Quantised:
    """One way of making int8 rows, beside the reference."""

    name: str
    unequal: int
    """Elements that equality calls wrong."""
    largest: int
    """The largest difference of two integers."""
    wrong: int
    """Elements beyond the bound."""


def ways_to_quantise() -> list[Quantised]:
    """Quantise rows in bfloat16 in two right ways and a wrong one."""
    random = torch.Generator().manual_seed(1)
    states = torch.randn(ROWS, COLUMNS, generator=random).to(torch.bfloat16)
    expected = dynamic_quant(DynamicQuantInputs(states, None, None, 8))["quantised"]
    numbers = states.float()
    largest = numbers.abs().amax(dim=1, keepdim=True)
    made = {
        "by a quotient": torch.round(numbers / (largest / 127)),
        "by a reciprocal": torch.round(numbers * (127 / largest)),
        "cut off, not rounded": torch.trunc(numbers / (largest / 127)),
    }
    golden = torch.round(states.double() / (states.double().abs().amax(dim=1, keepdim=True) / 127))
    found = []
    for name, integers in made.items():
        differ = (integers.double() - golden).abs()
        beyond = (integers.double() - expected.value).abs() > expected.bound
        found.append(Quantised(name, int((differ > 0).sum()), int(differ.max()), int(beyond.sum())))
    return found


WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 340, 70, 50, 24, 20


class Plot:
    """A picture with logarithmic axes."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], title: str, across: str, up: str) -> None:
        self._x, self._y = x, y
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">',
            f"<title>{title}</title>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            '<g font-family="sans-serif" font-size="13" fill="#333">',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{across}</text>',
            f'<text x="{LEFT}" y="16">{up}</text>',
        ]
        for low, high, along in ((*x, True), (*y, False)):
            for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
                self._tick(10.0**power, along=along)

    def _tick(self, value: float, *, along: bool) -> None:
        text = f"{value:g}"
        if along:
            at = self._across(value)
            self._parts.append(f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#e4e4e4"/>')
            self._parts.append(f'<text x="{at}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{text}</text>')
        else:
            at = self._up(value)
            self._parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="#e4e4e4"/>')
            self._parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{text}</text>')

    def _across(self, value: float) -> float:
        low, high = map(math.log10, self._x)
        return round(LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - RIGHT - LEFT), 1)

    def _up(self, value: float) -> float:
        low, high = map(math.log10, self._y)
        return round(HEIGHT - BOTTOM - (math.log10(value) - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    def line(self, points: Sequence[tuple[float, float]], colour: str, text: str, *, dashed: bool = False) -> None:
        """Draw a line, with its name above its beginning."""
        placed = [(self._across(x), self._up(y)) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in placed)
        dashes = ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dashes}/>')
        x, y = placed[0]
        self._parts.append(f'<text x="{x + 24}" y="{y - 8}" fill="{colour}">{text}</text>')

    def text(self) -> str:
        """Return the picture."""
        return "\n".join([*self._parts, "</g>", "</svg>"]) + "\n"


def picture_of_a_window(found: Sequence[OneKeyMore]) -> str:
    """Draw the error of a key too many, and what is allowed."""
    highest = 10 * max(one.error for one in found)
    lowest = min(one.bound for one in found) / 10
    title = "A window that is one key too wide"
    across, up = "keys that the window shows", "size at the worst element"
    plot = Plot((KEYS[0], KEYS[-1] * 1.5), (lowest, highest), title, across, up)
    plot.line([(one.keys, one.tolerance) for one in found], "#c2410c", "allclose, 1e-2 and 1e-2", dashed=True)
    plot.line([(one.keys, one.error) for one in found], "#1d4ed8", "error of the wrong kernel")
    plot.line([(one.keys, one.bound) for one in found], "#15803d", "bound of a right kernel")
    return plot.text()


def main() -> None:
    """Write the pictures, and print what the page says."""
    FOLDER.mkdir(exist_ok=True)
    window = one_key_more()
    (FOLDER / "one-key-more.svg").write_text(picture_of_a_window(window), encoding="utf-8")
    for one in window:
        print(f"{one.keys:5} keys: {one.over_tolerance:8.3g} of the tolerance, {one.over_bound:8.3g} of the bound")
    for way in ways_to_quantise():
        print(f"{way.name}: {way.unequal} unequal, by {way.largest} at most; {way.wrong} beyond the bound")


if __name__ == "__main__":
    main()
