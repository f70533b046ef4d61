from __future__ import annotations

from mutant_pairs.pair import Pair
from npudiff.properties.format_cast import FormatCastCase


def case(rows, columns, dtype="bfloat16", leading=(), view="whole"):
    return FormatCastCase(rows, columns, leading, dtype, view)


PAIRS = {
    "transdata_pads_swapped": Pair(
        case(3, 3, "int8"),  # as many elements as there should be, in the wrong places; other shapes raise
        [case(32, 64, "int8"), case(1, 1, "int8")],
        "1 x 2 · int8",
    ),
    "tiles_of_16_columns": Pair(
        case(5, 20, "int8"),
        [case(5, 20), case(5, 20, "float32"), case(1, 16, "int8")],
        "1 x 17 · int8",
    ),
    "tiles_row_by_row": Pair(
        case(20, 40),
        [case(16, 40), case(20, 16), case(20, 32, "int8", (3,))],
        "17 x 17 · bfloat16",
        otherwise=("129 x 17 · bfloat16", "17 x 129 · bfloat16"),
    ),
    "rows_not_padded": Pair(
        case(5, 20, leading=(2,)),
        [case(5, 16, leading=(2,)), case(32, 20)],
        "1 x 17 · bfloat16",
        otherwise=("1 x 129 · bfloat16",),
    ),
    "holes_not_cleared": Pair(case(5, 20), [case(16, 32), case(32, 64, "int8")], "1 x 1 · bfloat16"),
    "format_without_transdata": Pair(
        case(5, 20), [case(32, 16), case(1, 16), case(48, 32, "int8")], "2 x 1 · bfloat16"
    ),
    "view_read_as_contiguous": Pair(
        case(5, 20, view="columns"),
        [case(5, 20), case(5, 20, view="rows"), case(1, 20, view="transposed")],
        "2 x 2 · bfloat16 · columns",
    ),
}
