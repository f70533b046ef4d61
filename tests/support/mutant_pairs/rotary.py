from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.rotary import RotaryCase
from npudiff.text import counted


def line(tokens, dims, style, table=1):
    return f"{counted(tokens, 'token')} · heads 1:1 · dim {dims} · {style} · bfloat16 · consecutive of {table}"


def case(rotary_dim=64, head_dim=64, **changes):
    return RotaryCase(3, 2, 1, rotary_dim, head_dim, **changes)


PAIRS = {
    "sine_at_padded_offset": Pair(case(96, 128), [case(128, 128), case(64, 128)], line(1, "192", "half")),
    "always_halves": Pair(case(style="interleaved"), [case(style="half")], line(1, "64", "interleaved")),
    "half_of_the_frequencies": Pair(
        case(style="interleaved"),
        [case(2, 64, style="interleaved")],
        line(1, "64", "interleaved"),
    ),
    "head_dim_for_rotary_dim": Pair(case(64, 128), [case(), case(128, 128)], line(1, "32/64", "half")),
    "positions_without_offset": Pair(case(positions="last"), [case(table=1)], line(2, "64", "half", 5)),
    "position_of_the_round_before": Pair(
        RotaryCase(257, 64, 1),
        [RotaryCase(200, 64, 1), RotaryCase(1025, 2, 1)],
        "257 tokens · heads 64:1 · dim 64 · half · bfloat16 · consecutive of 5",
    ),
    "first_positions_for_all_sections": Pair(
        case(sections="8/12/12"),
        [case(sections="8/12/12", table=1)],
        line(1, "64", "half", 5) + " · sections 8/12/12",
    ),
    "positions_of_the_capture": Pair(RotaryCase(3, 2, 1), [RotaryCase(3, 2, 1, positions="last")], ""),
}
