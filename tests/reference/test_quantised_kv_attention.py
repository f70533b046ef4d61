"""The reference of attention over int8 keys and values, against torch's attention, integers by hand, and its bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from by_night import by_night
from npudiff.model.constraints import Constraints
from npudiff.properties.quantised_kv_attention import QuantisedKvAttentionCase, build_inputs
from npudiff.properties.quantised_kv_attention.case import FORMS, OFFSETS, RECIPES, SPREADS
from npudiff.properties.sliding_attention.case import Request
from npudiff.reference import attended_requests
from npudiff.reference import quantised_kv_attention as module
from npudiff.reference.paged_kv import PagedKV
from npudiff.reference.quantised_kv_attention import Antiquant, QuantisedKvAttentionInputs, quantised_kv_attention

DRAWN = settings(
    max_examples=by_night(50), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
SMALL = Constraints.of({
    "query_length": range(20), "kv_length": range(300), "batch": range(1, 5), "poison": ("large", "nan"),
})  # fmt: skip
PLAIN = QuantisedKvAttentionCase(
    (Request(1, 70), Request(3, 33), Request(1, 0)), kv_heads=2, group=3, head_dim=64, padded_rows=2, seed=3
)
FORM = pytest.mark.parametrize("form", FORMS)


def elements(inputs, cache, side, request, token):
    """``[kv_heads, head_dim]`` of one token by plain lists: page, strip and number looked up one by one."""
    pool = inputs.pool
    page, offset = int(pool.block_table[request, token // pool.page_size]), token % pool.page_size
    found = torch.empty(pool.kv_heads, pool.head_dim, dtype=torch.float64)
    for head in range(pool.kv_heads):
        for dim in range(pool.head_dim):
            nz = pool.layout == "PA_NZ"
            stored = cache[page, head, dim // 32, offset, dim % 32] if nz else cache[page, offset, head, dim]
            place = {
                "channel": (head, dim), "tensor": (0,), "head": (head,), "token": (page, offset),
                "token and head": (page, head, offset),
            }[side.granularity]  # fmt: skip
            shift = 0.0 if side.offset is None else float(side.offset[place])
            found[head, dim] = (int(stored) + shift) * float(side.scale[place])
    return found


def by_torch(inputs, restored):
    """Outputs of ``scaled_dot_product_attention`` in float64, request by request; 0 without keys."""
    output, start = torch.zeros(inputs.query.shape, dtype=torch.float64), 0
    for request, (new, total) in enumerate(zip(inputs.query_lengths, inputs.kv_lengths, strict=True)):
        if new and total:
            query = inputs.query[start : start + new].double().transpose(0, 1)
            key, value = (side.transpose(0, 1) for side in restored(request, total))
            key, value = (one.repeat_interleave(len(query) // len(one), 0) for one in (key, value))
            seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
            result = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=seen, scale=inputs.scale
            )
            output[start : start + new] = result.transpose(0, 1)
        start += new
    return output


def rounded(inputs):
    """A function that gathers a request's elements in the query's dtype, from pages that are dequantised as a whole."""
    pool = inputs.pool

    def wide(side, numbers):
        shapes = {
            "channel": (1, 1, pool.kv_heads, pool.head_dim), "tensor": (1, 1, 1, 1), "head": (1, 1, -1, 1),
            "token": (-1, pool.page_size, 1, 1), "token and head": (-1, pool.kv_heads, pool.page_size, 1),
        }  # fmt: skip
        shaped = numbers.view(shapes[side.granularity]).to(inputs.query.dtype)
        return shaped.transpose(1, 2) if side.granularity == "token and head" else shaped

    def whole(cache, side):
        nd = cache.transpose(2, 3).flatten(3).transpose(1, 2) if pool.layout == "PA_NZ" else cache
        found = nd.to(inputs.query.dtype)
        return (found if side.offset is None else found + wide(side, side.offset)) * wide(side, side.scale)

    pages = [whole(pool.key, inputs.of_keys), whole(pool.value, inputs.of_values)]

    def gather(request, total):
        own = pool.block_table[request].long()
        return [one[own].flatten(0, 1)[:total].double() for one in pages]

    return gather


def exact(inputs):
    """A function that looks a request's elements up one by one."""
    sides = (inputs.pool.key, inputs.of_keys), (inputs.pool.value, inputs.of_values)
    return lambda request, total: [
        torch.stack([elements(inputs, *side, request, token) for token in range(total)]) for side in sides
    ]


@FORM
@pytest.mark.parametrize(("layout", "offsets"), [("PA_BSND", "none"), ("PA_NZ", "fractional")])
def test_torch_agrees_over_elements_that_are_looked_up_one_by_one(form, layout, offsets):
    case = replace(PLAIN, form=form, layout=layout, offsets=offsets, head_dim=32, requests=(Request(2, 35),))
    inputs = build_inputs(case)
    expected = quantised_kv_attention(inputs)["output"]
    assert float((by_torch(inputs, exact(inputs)) - expected.value)[:2].abs().max()) < 1e-9


@DRAWN
@given(QuantisedKvAttentionCase.strategy(SMALL))
def test_attention_over_rounded_elements_is_within_the_bound(case):
    """The form of vllm-ascend, in float64 behind the rounding, with an error that the bound has for that alone."""
    inputs = build_inputs(case)
    expected, rows = quantised_kv_attention(inputs)["output"], sum(inputs.query_lengths)
    theirs = by_torch(inputs, rounded(inputs))
    assert bool(((theirs - expected.value).abs() <= expected.bound + 1e-9)[:rows].all())
    if case.spread == "powers of two" and case.offsets != "fractional":
        assert float((theirs - expected.value)[:rows].abs().max() if rows else 0) < 1e-9


def by_hand(tokens, query, number):
    """Softmax over integers of one element each, in exact arithmetic but for the exponential."""
    keys = [(Fraction(key) + number["key offset"]) * number["key scale"] for key, _ in tokens]
    values = [(Fraction(value) + number["value offset"]) * number["value scale"] for _, value in tokens]
    weights = [math.exp(float(query * key) - float(query * keys[0])) for key in keys]
    total = sum(weights)
    lse = math.log(total) + float(query * keys[0])
    return sum(weight * float(value) for weight, value in zip(weights, values, strict=True)) / total, lse


def test_integers_by_hand():
    """One head of which one element is not 0, in a page behind the dummy."""
    tokens = [(-128, 127), (5, -128), (127, 0), (0, 90)]
    number = {"key offset": Fraction(3), "key scale": Fraction(1, 64), "value offset": Fraction(-7, 4),
              "value scale": Fraction(3, 8)}  # fmt: skip
    key, value = (torch.zeros(2, 32, 1, 32, dtype=torch.int8) for _ in range(2))
    key[1, :4, 0, 9], value[1, :4, 0, 20] = torch.tensor(tokens, dtype=torch.int8).t()
    query = torch.zeros(1, 1, 32, dtype=torch.bfloat16)
    query[0, 0, 9] = 0.5

    def side(name):
        return Antiquant("tensor", *(torch.tensor([float(number[f"{name} {what}"])]).bfloat16() for what in
                                     ("scale", "offset")))  # fmt: skip

    table = torch.tensor([[1]], dtype=torch.int32)
    inputs = QuantisedKvAttentionInputs(query, PagedKV(key, value, table), side("key"), side("value"), (1,), (4,), 1.0)
    found = quantised_kv_attention(inputs)
    output, lse = by_hand(tokens, Fraction(1, 2), number)
    assert float(found["output"].value[0, 0, 20]) == pytest.approx(output, abs=1e-12)
    assert float(found["lse"].value[0, 0]) == pytest.approx(lse, abs=1e-12)
    others = [dim for dim in range(32) if dim != 20]
    assert float((found["output"].value[0, 0, others] + 1.75 * 0.375).abs().max()) < 1e-12  # zeros have the offset too


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("spread", SPREADS)
def test_rows_that_see_nothing_and_padding(recipe, spread):
    expected = quantised_kv_attention(build_inputs(replace(PLAIN, recipe=recipe, spread=spread)))
    output, lse = expected["output"], expected["lse"]
    assert not output.value[4:].any()
    assert not output.bound[4:].any()
    assert bool(lse.value[4].isneginf().all())
    assert not lse.bound[4].any()
    assert bool(lse.bound[5:].isposinf().all())
    assert bool(output.bound[:4].isfinite().all() and lse.bound[:4].isfinite().all())


@FORM
@pytest.mark.parametrize("offsets", OFFSETS)
def test_either_form_may_be_left_out(monkeypatch, form, offsets):
    """A line says which forms are right: with one of them, the bound is that of attention over its elements."""
    inputs = build_inputs(replace(PLAIN, form=form, offsets=offsets, spread="wide"))
    both, alone = quantised_kv_attention(inputs)["output"], {}
    for name in module.DEQUANTISED_IN:
        monkeypatch.setattr(module, "DEQUANTISED_IN", (name,))
        alone[name] = quantised_kv_attention(inputs)["output"]
    assert torch.equal(alone["float32"].value, both.value)
    apart = (alone["query"].value - both.value).abs()
    assert torch.equal(both.bound, torch.maximum(alone["float32"].bound, apart + alone["query"].bound))
    assert float((apart / alone["float32"].bound)[:4].max()) > 0.2


def test_a_scale_that_rounds_nothing_adds_nothing_to_the_bound(monkeypatch):
    inputs = build_inputs(replace(PLAIN, spread="powers of two", offsets="whole"))
    both = quantised_kv_attention(inputs)
    monkeypatch.setattr(module, "DEQUANTISED_IN", ("float32",))
    for name, alone in quantised_kv_attention(inputs).items():
        assert torch.equal(both[name].bound, alone.bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", ["gaussian", "saturated"])
def test_the_bound_is_used(recipe, dtype):
    """A device that dequantises in the query's dtype, and rounds weights before the product, comes near it."""
    name = str(dtype).removeprefix("torch.")
    case = replace(PLAIN, requests=(Request(1, 70), Request(1, 33)), dtype=name, recipe=recipe, group=1, padded_rows=0)
    inputs = build_inputs(case)
    expected, gather, ratio = quantised_kv_attention(inputs)["output"], rounded(inputs), 0.0
    for row, total in enumerate(inputs.kv_lengths):
        key, value = (one.float().transpose(0, 1) for one in gather(row, total))
        scores = inputs.query[row].float()[:, None] @ key.transpose(1, 2) * inputs.scale
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        output = (weights.to(dtype).float() @ value / weights.sum(-1, keepdim=True)).to(dtype)[:, 0]
        ratio = max(ratio, float(((output.double() - expected.value[row]).abs() / expected.bound[row]).max()))
    assert 0.3 < ratio <= 1


def test_the_direction_of_the_scale_is_the_derivative():
    inputs, step = build_inputs(replace(PLAIN, padded_rows=0)), 1e-5
    up, down = (
        quantised_kv_attention(replace(inputs, scale=inputs.scale * (1 + by)))["output"].value for by in (step, -step)
    )
    direction = quantised_kv_attention(inputs)["output"].directions[attended_requests.SCALE]
    torch.testing.assert_close(direction, (up - down) / (2 * step), rtol=1e-4, atol=1e-5)


@FORM
def test_nothing_is_read_that_no_row_sees(form):
    """Integers behind the last token, and scales that are NaN there, move nothing by a bit."""
    case = replace(PLAIN, form=form, poison="nan" if "token" in form else "large")
    inputs = build_inputs(case)
    pool = inputs.pool
    unread = torch.ones(len(pool.key), pool.page_size, dtype=torch.bool)
    for row, total in enumerate(inputs.kv_lengths):
        tokens = torch.arange(total)
        unread[pool.block_table[row].long()[tokens // pool.page_size], tokens % pool.page_size] = False
    other = pool.key.clone()
    other[unread] = 7
    before, after = (
        quantised_kv_attention(one) for one in (inputs, replace(inputs, pool=replace(pool, key=other, value=other)))
    )
    assert torch.equal(before["lse"].value[:4], after["lse"].value[:4])
    assert not before["output"].value.isnan().any()


def changed(**changes):
    def change(inputs):
        return replace(inputs, **{name: make(inputs) for name, make in changes.items()})

    return change


def numbers(name, **changes):
    return changed(**{name: lambda inputs: replace(getattr(inputs, name), **changes)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(kv_lengths=lambda _: (70, 33)), "are not of 7 rows"),
        (changed(query_lengths=lambda _: (9, 3, 1)), "are not of 7 rows"),
        (changed(kv_lengths=lambda _: (-1, 33, 0)), "new tokens of -1"),
        (changed(kv_lengths=lambda _: (1000, 33, 0)), "too narrow"),
        (changed(query=lambda _: torch.zeros(7, 6, 32)), "does not fit"),
        (changed(query=lambda _: torch.zeros(7, 5, 64)), "does not fit"),
        (changed(pool=lambda inputs: replace(inputs.pool, key=inputs.pool.key.bfloat16())), "are int8"),
        (numbers("of_keys", granularity="group"), "numbers are one of"),
        (numbers("of_keys", scale=torch.ones(2, 32).bfloat16()), "scale of keys per channel"),
        (numbers("of_values", scale=torch.ones(2, 64)), r"scale of values .* torch.bfloat16, got .* torch.float32"),
        (numbers("of_values", offset=torch.ones(2).bfloat16()), "offset of values"),
        (numbers("of_values", granularity="token", scale=torch.ones(1, 32)), r"per token is \[\d+, 32\]"),
    ],
)
def test_what_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        quantised_kv_attention(change(build_inputs(PLAIN)))
