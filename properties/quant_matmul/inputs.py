"""From a case to tensors, and where each element of an output is."""

from __future__ import annotations

import torch

from npudiff.draw.data import Stream
from npudiff.properties._shared.rows import with_row_stride
from npudiff.properties.quant_matmul.case import DTYPES, QuantMatmulCase
from npudiff.reference.quant_matmul import RANGES, QuantMatmulInputs


def build_inputs(case: QuantMatmulCase) -> QuantMatmulInputs:
    """Build the inputs of a case."""
    x, weight = _states(case), _weight(case)
    bias = _bias(case, x, weight)
    scale = (0.5 + _uniform(case, "scale", case.columns)) * _output_size(case) / _sum_size(case)
    if case.output == "int8":
        scale = (0.5 + 0.5 * _uniform(case, "scale", case.columns)) * _LARGEST_INTEGER / _largest(x, weight, bias)
    tokens = torch.arange(case.tokens)
    offsets = torch.tensor(Stream(case.seed, "offset").integers(-100, 101, case.columns))
    token_scale = (0.25 + _uniform(case, "token scale", case.tokens)) * 0.5 ** (tokens % 3)
    return QuantMatmulInputs(
        x=with_row_stride(x, case.rows),
        weight=weight.t().contiguous().t() if case.layout == "transposed" else weight,
        scale=_per(case.scale_per, scale).to(DTYPES[case.scale]),
        token_scale=token_scale.to(torch.float32) if case.token_scale else None,
        offset=None if case.offset == "none" else _per(case.offset, offsets).to(torch.float32),
        bias=bias,
        output_dtype=DTYPES[case.output],
        bits=case.bits,
    )


_LARGEST_INTEGER = 240.0
"""What the largest sum of a column is worth in an int8 output: beyond the range of int8, and within nine bits, which is
where hardware limits it before it adds an offset."""


def _per(per: str, numbers: torch.Tensor) -> torch.Tensor:
    return numbers if per == "columns" else numbers[:1]


def _uniform(case: QuantMatmulCase, name: str, count: int) -> torch.Tensor:
    """Numbers from 0 to 1, float64: as float32 they use all bits."""
    words = (Stream(case.seed, name).random_uint64(count) >> 11).astype("int64")
    return torch.from_numpy(words).to(torch.float64) / 2**53


def _quarter(case: QuantMatmulCase) -> float:
    return RANGES[case.bits][1] / 4


def _sum_size(case: QuantMatmulCase) -> float:
    """How large a sum is, about."""
    if case.recipe in ("extremes", "cancelling"):
        return float(case.inner * RANGES[case.bits][1] ** 2)
    return float(case.inner**0.5 * _quarter(case) ** 2)


def _output_size(case: QuantMatmulCase) -> float:
    """How large a float output is, about: such that small ones beside large sums are no subnormals of float16."""
    return 4096.0 if case.recipe in ("extremes", "cancelling") else 8.0


def _largest(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    sums = x.to(torch.float64) @ weight.to(torch.float64)
    return (sums if bias is None else sums + bias).abs().amax(dim=0).clamp(min=1.0)


def _spread(case: QuantMatmulCase, name: str, shape: tuple[int, int]) -> torch.Tensor:
    numbers = Stream(case.seed, name).normal(shape, torch.float32) * _quarter(case)
    return numbers.round().clamp(*RANGES[case.bits]).to(torch.int8)


def _mostly_ends(case: QuantMatmulCase, name: str, lines: int, length: int) -> torch.Tensor:
    """Lines of the largest integer and of the smallest in turn, int8 ``[lines, length]``; one in eight is another."""
    low, high = RANGES[case.bits]
    spread = _spread(case, name, (lines, length))
    ends = torch.where(torch.arange(lines) % 2 == 0, high, low).to(torch.int8).unsqueeze(1)
    other = (
        torch.from_numpy((Stream(case.seed, f"{name} other").random_uint64(lines * length) >> 61).astype("int64")) == 7
    )
    return torch.where(other.view(lines, length), spread, ends)


def _states(case: QuantMatmulCase) -> torch.Tensor:
    if case.recipe in ("extremes", "cancelling"):
        return _mostly_ends(case, "x", case.tokens, case.inner)
    x = _spread(case, "x", (case.tokens, case.inner))
    if case.recipe == "zero rows":
        x[::2] = 0
    return x


def _weight(case: QuantMatmulCase) -> torch.Tensor:
    """The weight, int8 ``[inner, columns]``, contiguous."""
    if case.recipe not in ("extremes", "cancelling"):
        return _spread(case, "weight", (case.inner, case.columns))
    columns = _mostly_ends(case, "weight", case.columns, case.inner)
    if case.recipe == "cancelling":
        columns[:, case.inner // 2 :] = -1 - columns[:, case.inner // 2 :]
    return columns.t().contiguous()


def _bias(case: QuantMatmulCase, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
    if case.bias == "none":
        return None
    numbers = Stream(case.seed, "bias").normal((case.columns,), torch.float32)
    if case.bias != "int32":
        return (numbers * _output_size(case)).to(DTYPES[case.bias])
    if case.recipe in ("extremes", "cancelling") and case.inner < 2**15:  # twice a sum has to fit
        return ((numbers * 100).to(torch.int64) - (x[:1].to(torch.int64) * weight.t()).sum(dim=1)).to(torch.int32)
    return (numbers * _sum_size(case) / 4).to(torch.int32)
