from __future__ import annotations

from dataclasses import replace

from mutant_pairs.pair import Pair
from npudiff.properties.scale_pack import ScalePackCase

BITS = ScalePackCase(7)
FIXPIPE = replace(BITS, form="fixpipe")
ROUNDED = replace(FIXPIPE, round_mode=1)
OFFSET = replace(FIXPIPE, offset="each")
EXACT = {"recipe": "19 bits"}

PAIRS = {
    "sign_of_scale_extended": Pair(
        replace(BITS, recipe="negative"), [BITS, replace(BITS, experts=2)], "1 scale · bits · negative"
    ),
    "scale_as_a_number": Pair(BITS, [], "1 scale · bits", everywhere=True),
    "scale_in_the_upper_half": Pair(BITS, [], "1 scale · bits", everywhere=True),
    "marker_where_none_belongs": Pair(BITS, [], "1 scale · bits", everywhere=True),
    "marker_missing": Pair(FIXPIPE, [], "1 scale · fixpipe", everywhere=True),
    "low_bits_of_scale_kept": Pair(FIXPIPE, [replace(FIXPIPE, **EXACT)], "1 scale · fixpipe"),
    "scale_rounded_where_cut": Pair(FIXPIPE, [replace(FIXPIPE, **EXACT)], "1 scale · fixpipe"),
    "scale_cut_where_rounded": Pair(ROUNDED, [replace(ROUNDED, **EXACT)], "1 scale · fixpipe · rounded"),
    "sign_of_offset_extended": Pair(OFFSET, [replace(OFFSET, columns=1, seed=1)], "1 scale · fixpipe · offset each"),
    "offset_cut_to_an_integer": Pair(OFFSET, [replace(OFFSET, columns=1, seed=12)], "1 scale · fixpipe · offset each"),
    "memory_of_scales": Pair(
        replace(BITS, experts=1, groups=2, layout="transposed"),
        [replace(BITS, experts=2, layout="transposed")],
        "1 expert x 2 groups x 2 · bits · transposed",
    ),
}
