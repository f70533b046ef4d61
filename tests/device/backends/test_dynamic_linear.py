"""Linear layers that quantise their states: the integers of a case come through them as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from npudiff.device.backends.dynamic_linear import of_rows
from npudiff.properties.quant_matmul import QuantMatmulCase, build_inputs
from npudiff.reference.quant_matmul import RANGES, quant_matmul

EIGHT = QuantMatmulCase(tokens=5, inner=64, columns=8, bits=8, output="bfloat16", scale="bfloat16")
FOUR = QuantMatmulCase(tokens=5, inner=64, columns=8, bits=4, output="bfloat16", token_scale=True)


def layer_of(inputs, *, scale_of=lambda scales: scales):
    """A layer that quantises each row by its largest element, as npu_dynamic_quant does."""
    most = RANGES[inputs.bits][1]

    def layer(weight, scale, states):
        scales = states.float().abs().amax(dim=1, keepdim=True) / most
        whole = (states.float() / scales).round()
        assert whole.abs().max() <= most
        sums = whole.double() @ weight.double()
        output = (sums * scale.double() * scale_of(scales).double()).float()
        return (output if inputs.bias is None else output + inputs.bias.float()).to(inputs.output_dtype)

    return layer


def worst(inputs, **options):
    expected = quant_matmul(inputs)["output"]
    actual = of_rows(inputs, inputs.output_dtype, layer_of(inputs, **options))
    assert actual.dtype == expected.dtype
    return float(((actual.double() - expected.value).abs() / expected.bound.clamp(min=1e-300)).max())


@pytest.mark.parametrize(
    "case",
    [
        EIGHT,
        replace(EIGHT, inner=17, recipe="extremes"),  # the smallest integer is in it, which no such layer makes
        replace(EIGHT, recipe="zero rows"),
        replace(EIGHT, bias="bfloat16"),
        FOUR,
        replace(FOUR, recipe="extremes"),
    ],
)
def test_what_comes_out_is_the_product_of_the_integers(case):
    assert worst(build_inputs(case)) <= 1


def test_rows_have_scales_that_are_told_apart():
    assert worst(build_inputs(EIGHT), scale_of=lambda scales: scales.roll(1, dims=0)) > 1
    assert worst(build_inputs(FOUR), scale_of=lambda scales: scales.roll(1, dims=0)) > 1
