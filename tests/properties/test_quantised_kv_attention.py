"""Attention over int8 keys and values: what its data has, and that every relation of it can fail."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.device.ascend.quantised_kv_attention import torch_int8_float32
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.quantised_kv_attention import QuantisedKvAttentionCase, build_inputs, component
from npudiff.properties.quantised_kv_attention.case import FORMS, RECIPES
from npudiff.properties.quantised_kv_attention.relations import read_slots
from npudiff.properties.sliding_attention.case import Request
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

SMALL = {"kv_length": range(200), "head_dim": (32, 64), "poison": ("large",)}
PLAIN = QuantisedKvAttentionCase((Request(1, 70), Request(2, 33)), kv_heads=2, head_dim=64, seed=3)


def row_of_request(inputs, output):
    """A number for each row that says where its request stands in the batch."""
    lengths = torch.tensor(inputs.query_lengths)
    places = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return output + torch.nn.functional.pad(places, (0, len(output) - len(places)))[:, None, None]


BROKEN = {
    "decode_equals_last_row": lambda i, o: o + (max(i.query_lengths) == 1),
    "page_names_do_not_matter": lambda i, o: o + int(i.pool.block_table[0, 0]) % 2,
    "batch_order_does_not_matter": row_of_request,
    "company_does_not_matter": lambda i, o: o + (len(i.query_lengths) > 1),
    "padding_does_not_matter": lambda i, o: o + (len(i.query) > sum(i.query_lengths)),
    "poison_changes_no_bit": lambda i, o: o + int(i.pool.key.flatten()[0]),
    "larger_scales_make_larger_outputs": lambda i, o: o + 1,
    "one_number_is_that_of_each_channel": lambda i, o: o + (i.of_keys.granularity == "channel"),
}


def verdict(name, change):
    (prop,) = (relation for relation in component.relations if relation.name == name)

    def device(inputs, target):
        return {"output": change(inputs, torch_int8_float32(inputs, target)["output"])}

    item = implementation("quantised_kv_attention", name="device", supports=SMALL)(device)
    job = Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)
    return run_job(job, Budget(examples=15, seed=1, shrink=False)).verdict


@pytest.mark.parametrize("name", BROKEN)
def test_a_relation_sees_a_device_that_breaks_it(name):
    assert verdict(name, BROKEN[name]) is Verdict.WRONG


@pytest.mark.few(3)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_every_relation_is_broken_by_some_device_above_and_held_by_a_right_one(name):
    assert name in BROKEN
    assert verdict(name, lambda _, output: output) is Verdict.HOLDS


def test_long_histories_are_drawn_of_which_kernels_compute_parts():
    found = drawn(component, Constraints(), 300)
    assert sum(max(case.kv_length) > 4096 for case in found) > 0.03 * len(found)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_integers_times_scales_are_about_one_whatever_the_scales_are(form, recipe):
    """Queries go by the scales of keys, so that scores are about one too, but for needles and scales of tokens."""
    inputs = build_inputs(replace(PLAIN, form=form, recipe=recipe, spread="wide", offsets="whole"))
    slots = read_slots(inputs).nonzero()
    slots = slots[:, 0] * inputs.pool.page_size + slots[:, 1]
    keys = inputs.of_keys.restored(inputs.pool.key.flatten(0, 1)[slots], slots, inputs.pool.page_size, torch.float64)
    scores = torch.einsum("qhd,khd->qhk", inputs.query.double(), keys) * inputs.scale
    assert 0.2 < float(scores.std()) < 8
    assert -128 <= int(inputs.pool.key.min()) < int(inputs.pool.key.max()) <= 127


def test_scales_lie_apart_and_saturated_integers_are_at_both_ends():
    inputs = build_inputs(replace(PLAIN, recipe="saturated", spread="wide"))
    assert float(inputs.of_keys.scale.max() / inputs.of_keys.scale.min()) > 1000
    used = read_slots(inputs)
    for cache in (inputs.pool.key, inputs.pool.value):
        for end in (-128, 127):
            assert 0.05 < float((cache[used] == end).float().mean()) < 0.08


@pytest.mark.parametrize("form", ["token", "token and head", "channel, values token"])
def test_scales_of_tokens_that_nobody_sees_are_poison(form):
    for poison, is_poison in (("nan", torch.isnan), ("large", lambda scale: scale == 128.0)):
        inputs = build_inputs(replace(PLAIN, form=form, poison=poison))
        found = is_poison(inputs.of_values.scale)
        found = found.all(dim=1) if form == "token and head" else found
        used = read_slots(inputs)
        assert not bool((found & used).any())
        assert bool(found[0].all())
        assert int(found.sum()) > inputs.pool.page_size


def test_half_of_the_cases_are_decodes_and_many_lie_in_strips():
    cases = drawn(component, Constraints(), 300)
    shares = {
        "decode": sum(case.query_length == {1} for case in cases),
        "strips": sum(case.layout == "PA_NZ" for case in cases),
        "offsets": sum(case.offsets != "none" for case in cases),
        "tokens": sum("token" in case.form for case in cases),
        "part of a page": sum(any(one.kv % case.page_size for one in case.requests) for case in cases),
        "several heads": sum(case.kv_heads > 1 for case in cases),
        "groups": sum(case.group > 1 for case in cases),
    }
    assert all(share > 0.15 * len(cases) for share in shares.values()), shares
    assert len({case.page_size for case in cases}) >= 8
