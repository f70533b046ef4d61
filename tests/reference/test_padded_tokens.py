from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import compare
from npudiff.reference.padded_tokens import PaddedTokensInputs, padded_tokens, real_rows, real_rows_of_chunks

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHUNKS = {"totals": [3, 5, 0, 12], "offsets": [0, 0, 0, 10]}
REAL = [0, 1, 2, 5, 6, 7, 8, 9, 15, 16]
"""Of 20 rows in chunks of 5: three of the first, all of the second, none of the third, two of the last."""


def inputs(dtype=torch.bfloat16, poison=None, rows=20, width=6, top_k=3, experts=5, **chunks):
    stream = Stream(9, "states")
    chunks = {name: torch.tensor(numbers) for name, numbers in (CHUNKS | chunks).items()}
    given = PaddedTokensInputs(
        states=stream.normal((rows, width), torch.float32).to(dtype),
        experts=torch.tensor([stream.permutation(experts)[:top_k] for _ in range(rows)], dtype=torch.int32),
        weights=stream.normal((rows, top_k), torch.float32).to(dtype),
        factors=torch.tensor([1.0, -2.0, 0.5, 4.0, -0.25], dtype=dtype),
        earlier=torch.zeros_like(chunks["totals"]),
        **chunks,
    )
    if poison is not None:
        padded = [row for row in range(rows) if row not in REAL]
        given.states[padded] = poison
        given.weights[padded] = poison
    return given


@pytest.mark.parametrize(
    ("chunk", "total", "offset", "real"),
    [(4, 3, 0, 3), (4, 0, 0, 0), (4, 4, 0, 4), (4, 9, 0, 4), (4, 9, 4, 4), (4, 9, 8, 1), (4, 8, 8, 0), (4, 3, 8, 0)],
)
def test_a_chunk_has_what_is_left_of_its_batch(chunk, total, offset, real):
    given = inputs(rows=chunk, totals=[total], offsets=[offset])
    assert real_rows_of_chunks(given).tolist() == [real]
    assert real_rows(given).tolist() == [True] * real + [False] * (chunk - real)


def test_real_rows_of_a_gathered_buffer_are_the_first_of_every_chunk():
    assert real_rows(inputs()).nonzero().flatten().tolist() == REAL


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [None, 4096.0, math.nan, math.inf])
def test_it_is_exact_arithmetic_one_row_after_the_other(dtype, poison):
    given = inputs(dtype, poison)
    result = padded_tokens(given)
    counts = Counter(given.experts.flatten().tolist())
    assert result["counts"].value.tolist() == [counts[expert] for expert in range(5)]
    assert sum(counts.values()) == 60
    assert torch.equal(result["experts"].value, given.experts)
    for row in range(20):
        if row not in REAL:
            assert result["weights"].value[row].tolist() == [0.0] * 3
            assert result["output"].bound[row].tolist() == [math.inf] * 6
            continue
        assert torch.equal(result["weights"].value[row], given.weights[row])
        weighted = [
            Fraction(float(weight)) * Fraction(float(given.factors[expert]))
            for weight, expert in zip(given.weights[row], given.experts[row].tolist(), strict=True)
        ]
        for column in range(6):
            right = sum(weighted) * Fraction(float(given.states[row, column]))
            assert float(result["output"].value[row, column]) == pytest.approx(float(right), rel=1e-14, abs=1e-300)
    for name in ("weights", "experts", "counts"):
        assert not result[name].bound.any()
    assert bool(result["output"].value.isfinite().all())


@pytest.mark.parametrize("poison", [4096.0, math.nan, math.inf])
def test_what_padding_holds_is_nowhere_in_what_is_asked_for(poison):
    clean, poisoned = padded_tokens(inputs()), padded_tokens(inputs(poison=poison))
    for name, output in clean.items():
        rows = REAL if name == "output" else slice(None)
        assert torch.equal(output.value[rows], poisoned[name].value[rows])
        assert torch.equal(output.bound, poisoned[name].bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_composed_device_stays_within_the_bound_and_comes_near_it(dtype):
    given = inputs(dtype, math.nan)
    rows = given.states.unsqueeze(1) * given.factors[given.experts.long()].unsqueeze(2)
    kept = given.weights.masked_fill(~real_rows(given).unsqueeze(1), 0.0)
    total = (rows.float() * kept.float().unsqueeze(2)).sum(dim=1).to(dtype)
    comparison = compare(padded_tokens(given), {"output": total, "weights": kept, "experts": given.experts})
    assert 0.1 < comparison.worst <= 1
    for change in (1.02, -1.0):
        assert compare(padded_tokens(given), {"output": (total.float() * change).to(dtype)}).worst > 1


def test_weights_that_are_left_and_rows_that_are_not_counted_are_wrong():
    given = inputs()
    expected = padded_tokens(given)
    left = {"weights": given.weights}
    uncounted = {"counts": torch.bincount(given.experts[REAL].flatten(), minlength=5)}
    nowhere = {"experts": given.experts.masked_fill(~real_rows(given).unsqueeze(1), -1)}
    for wrong in (left, uncounted, nowhere):
        assert compare(expected, wrong).worst == math.inf


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"totals": torch.tensor([1, 2, 3])}, "20 rows are not chunks of 3 ranks"),
        ({"totals": torch.tensor([], dtype=torch.int64)}, "20 rows are not chunks of 0 ranks"),
        ({"offsets": torch.tensor([1])}, r"offsets must be \[4\], got \[1\]"),
        ({"earlier": torch.tensor([1])}, r"earlier must be \[4\], got \[1\]"),
        ({"weights": torch.ones(20, 2).bfloat16()}, r"weights must be \[20, 3\], got \[20, 2\]"),
        ({"weights": torch.ones(20, 3)}, "weights and factors must be torch.bfloat16"),
        ({"factors": torch.ones(5)}, "weights and factors must be torch.bfloat16"),
        ({"factors": torch.tensor([1.0, 2, 4, 8]).bfloat16()}, r"experts must lie in 0\.\.3"),
        ({"factors": torch.tensor([1.0, 3, 4, 8, 7]).bfloat16()}, "must multiply the states exactly"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        padded_tokens(replace(inputs(), **changed))
