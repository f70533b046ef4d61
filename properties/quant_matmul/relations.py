"""What must hold between products of one implementation."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties._shared.token_order import in_another_order
from npudiff.properties._shared.weight_matrix import columns_in_another_order
from npudiff.properties.quant_matmul.case import QuantMatmulCase
from npudiff.properties.quant_matmul.inputs import build_inputs
from npudiff.reference.bounds import underflow_step


def _tokens_do_not_mix(subject: Subject, case: QuantMatmulCase) -> Comparison:
    order = Stream(case.seed, "order").permutation(case.tokens)
    return in_another_order(subject, build_inputs(case), order, ("x", "token_scale"))


def _columns_do_not_mix(subject: Subject, case: QuantMatmulCase) -> Comparison:
    return columns_in_another_order(subject, build_inputs(case), Stream(case.seed, "columns").permutation(case.columns))


def _sums_of_halves(subject: Subject, case: QuantMatmulCase) -> Comparison:
    """int32 is exact, whatever is summed first. Scales are 1, so that it does not matter whether they are applied."""
    inputs = build_inputs(case)
    whole = replace(inputs, scale=torch.ones_like(inputs.scale))
    half = case.inner // 32 * 16
    for inner in (half, case.inner - half):
        subject.require(replace(case, inner=inner), "one half of every sum")
    parts = (
        replace(whole, x=whole.x[:, :half].contiguous(), weight=whole.weight[:half].contiguous()),
        replace(whole, x=whole.x[:, half:].contiguous(), weight=whole.weight[half:].contiguous(), bias=None),
    )
    first, second = (subject.run(part)["output"] for part in parts)
    return compare(_equal(first + second), {"output": subject.run(whole)["output"]}, "two halves of every sum")


def _equal(right: torch.Tensor) -> dict[str, Derived]:
    return {"output": Derived(right, torch.zeros(right.shape, dtype=torch.float64), right.dtype)}


def _twice_the_token_scale(subject: Subject, case: QuantMatmulCase) -> Comparison:
    """Doubling is exact, but for numbers so small that their last bit is that of the dtype."""
    inputs = build_inputs(case)
    if inputs.token_scale is None:
        raise AssertionError("the property is for tokens with scales")
    once, twice = subject.run(inputs), subject.run(replace(inputs, token_scale=2 * inputs.token_scale))
    doubled = 2 * once["output"].to(torch.float64)
    free = torch.full_like(doubled, 4 * underflow_step(inputs.output_dtype))
    right = {"output": Derived(doubled, free, inputs.output_dtype)}
    return compare(right, {"output": twice["output"]}, "scales of tokens that are twice as large")


RELATIONS = (
    Property("tokens_do_not_mix", "the order of tokens does not matter", _tokens_do_not_mix,
             within={"tokens": range(2, 2**16 + 1)}),
    Property("columns_do_not_mix", "the order of columns does not matter", _columns_do_not_mix,
             within={"columns": range(2, 2**16)}),
    Property("sums_of_halves", "sums are those of their halves", _sums_of_halves,
             within={"bits": (8,), "output": ("int32",), "inner": range(32, 2**16)}),
    Property("twice_the_token_scale", "a token whose scale is twice as large has an output twice as large",
             _twice_the_token_scale,
             within={"output": ("bfloat16", "float16"), "token_scale": (True,), "bias": ("none", "int32")}),
)  # fmt: skip
