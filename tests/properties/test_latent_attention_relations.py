"""Every relation of latent attention can fail: for each, a device that breaks what it says."""

from __future__ import annotations

import itertools

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.device.ascend.latent_attention import latent_native
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.latent_attention import component
from npudiff.properties.latent_attention.case import LatentAttentionCase
from npudiff.properties.latent_attention.inputs import build_inputs
from npudiff.properties.latent_attention.relations import chosen_elements
from npudiff.properties.sliding_attention.case import Request
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

CALLS = itertools.count()

SMALL = {"rank": (64,), "rope_dim": (16,), "kv_length": range(200), "merges": (0,)}


def prefixed(inputs):
    return any(new < total for new, total in zip(inputs.query_lengths, inputs.kv_lengths, strict=True))


def row_of_request(inputs, output):
    """A number for each row that says where its request stands in the batch."""
    lengths = torch.tensor(inputs.query_lengths)
    places = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    added = torch.nn.functional.pad(places, (0, len(output) - len(places)))
    return output + added[:, None, None]


BROKEN = {
    "decode_equals_last_row": lambda i, o: o + (max(i.query_lengths) == 1),
    "first_chunk_equals_one_shot": lambda i, o: o + max(i.query_lengths),
    "second_chunk_equals_one_shot": lambda i, o: o + max(i.query_lengths),
    "prefix_equals_recomputed": lambda i, o: o + prefixed(i),
    "absorbed_equals_expanded": lambda i, o: o * (1.05 if i.up is None else 1.0),
    "page_names_do_not_matter": lambda i, o: o + int(i.pool.block_table[0, 0]) % 2,
    "batch_order_does_not_matter": row_of_request,
    "company_does_not_matter": lambda i, o: o + (len(i.query_lengths) > 1),
    "padding_does_not_matter": lambda i, o: o + (len(i.query) > sum(i.query_lengths)),
    "poison_changes_no_bit": lambda i, o: o + i.pool.key.flatten()[0].nan_to_num(512.0),
    "repeats_are_identical": lambda i, o: o + next(CALLS) % 2,
}


def verdict(name, change):
    (prop,) = (relation for relation in component.relations if relation.name == name)

    def device(inputs, target):
        return {"output": change(inputs, latent_native(inputs, target))}

    item = implementation("latent_attention", name="device", supports=SMALL)(device)
    job = Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)
    return run_job(job, Budget(examples=30, seed=1, shrink=False)).verdict


@pytest.mark.parametrize("name", BROKEN)
def test_a_relation_sees_a_device_that_breaks_it(name):
    assert verdict(name, BROKEN[name]) is Verdict.WRONG


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_every_relation_is_broken_by_some_device_above_and_held_by_a_right_one(name):
    assert name in BROKEN
    assert verdict(name, lambda inputs, output: output) is Verdict.HOLDS


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_elements_that_are_chosen_make_keys_and_values_without_a_rounding(dtype):
    case = LatentAttentionCase((Request(2, 20),), "expanded", heads=3, dtype=dtype, seed=5)
    up, columns = chosen_elements(case)
    latent = build_inputs(case).pool.read(0, 0, 20)[0][:, 0]
    keys = torch.einsum("tr,hnr->thn", latent.double(), up.key.double())
    assert torch.equal(keys.to(latent.dtype).double(), keys)
    assert torch.equal(torch.einsum("tr,hrv->thv", latent, up.value), latent[:, columns])


def test_prefixes_are_whole_pages_where_that_is_asked_for():
    seen = set()
    for case in drawn(component, Constraints(({"prefix": ("none", "whole pages"), "kv_length": range(2000)},)), 60):
        assert all((request.kv - request.query) % case.page_size == 0 for request in case.requests if request.kv)
        seen.add(case.prefix)
    assert seen == {"none", "whole pages"}
