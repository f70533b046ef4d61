from __future__ import annotations

import math

import pytest
import torch

from npudiff.draw.data import Stream
from npudiff.reference.bounds import unit_roundoff
from npudiff.reference.linear import carried, product

ROWS, INNER, COLUMNS = 64, 1536, 32


def data(name, rows, columns):
    return Stream(1, name).normal((rows, columns), torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_float32_product_that_is_rounded_is_within_its_own_error(dtype):
    rows, matrix = data("rows", ROWS, INNER), data("matrix", INNER, COLUMNS)
    expected = product(rows.double(), matrix.double(), dtype)
    assert torch.equal(expected.value, rows.double() @ matrix.double())
    for order in (slice(None), torch.arange(INNER).flip(0)):
        error = ((rows[:, order] @ matrix[order]).to(dtype).double() - expected.value).abs()
        assert float((error / expected.independent).max()) <= 1


def test_the_own_error_of_a_rounded_product_is_little_more_than_its_rounding():
    rows, matrix = data("rows", ROWS, INNER), data("matrix", INNER, COLUMNS)
    expected = product(rows.double(), matrix.double(), torch.bfloat16)
    rounding = expected.value.abs() * unit_roundoff(torch.bfloat16)
    large = expected.value.abs() > expected.value.std()
    assert float((expected.independent / rounding)[large].max()) < 1.25


def test_roundings_of_the_rows_come_out_within_what_is_carried():
    rows, matrix = data("rows", ROWS, INNER), data("matrix", INNER, COLUMNS).double()
    rounded = rows.bfloat16()
    bounds = rows.double().abs() * unit_roundoff(torch.bfloat16)
    error = ((rounded.double() - rows.double()) @ matrix).abs()
    assert float((error / carried(bounds, matrix)).max()) <= 1
    worst_case = bounds @ matrix.abs()
    assert float((worst_case / carried(bounds, matrix)).min()) > 5  # what the root over the sum saves


def test_errors_of_one_element_are_carried_by_its_row_of_the_matrix():
    errors, matrix = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 2], [3, -4], [5, 6]]).double()
    errors[0, 1] = 0.5
    assert carried(errors, matrix).tolist() == [[4 * 0.5 * 3, 4 * 0.5 * 4]]
    errors[0, 2] = 0.25
    assert carried(errors, matrix)[0, 0] == pytest.approx(4 * math.hypot(1.5, 1.25))
