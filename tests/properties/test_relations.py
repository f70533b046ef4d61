"""Every relation of sliding_attention can fail: for each, a device that breaks what it says."""

from __future__ import annotations

import itertools

import pytest
import torch

from npudiff import implementation
from npudiff.device.ascend.sliding_attention import torch_native
from npudiff.model.component import Subject
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.sliding_attention import component
from npudiff.reference.sliding_attention import sliding_attention
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

CALLS = itertools.count()


def rows_of(inputs, request):
    start = sum(inputs.query_lengths[:request])
    return slice(start, start + inputs.query_lengths[request])


def five_bounds(inputs, output):
    """Five times what one run may be off: above twice the bound, and far below any gross error."""
    return (output.double() + 5 * sliding_attention(inputs)["output"].bound).to(output.dtype)


def stale_token(inputs):
    """The value of the first token of a request that no row sees any more; 0 where there is none."""
    first = inputs.kv_lengths[0] - inputs.query_lengths[0] - (inputs.window or 2**40) + 1
    return inputs.kv.read(0, 0, 1)[1][0, 0, 0].float() if first > 0 and inputs.query_lengths[0] else torch.zeros(())


BROKEN = {
    "decode_equals_last_row": lambda i, o: o + (max(i.query_lengths) == 1),
    "chunks_equal_one_shot": lambda i, o: five_bounds(i, o) if max(i.query_lengths) > 8 else o,
    "prefix_hit_equals_cold": lambda i, o: o + any(q < kv for q, kv in zip(i.query_lengths, i.kv_lengths, strict=True)),
    "wide_window_equals_none": lambda i, o: o + (i.window is not None),
    "page_names_do_not_matter": lambda i, o: o + int(i.kv.block_table[0, 0]) % 2,
    "padding_does_not_matter": lambda i, o: o + (len(i.query) > sum(i.query_lengths)),
    "repeats_are_identical": lambda i, o: o + next(CALLS) % 2,
}


def by_request(inputs, output, change):
    output = output.clone()
    for request in range(len(inputs.query_lengths)):
        output[rows_of(inputs, request)] += change(request, len(inputs.query_lengths))
    return output


VARIANTS = [
    *BROKEN.items(),
    ("batch_order_does_not_matter", lambda i, o: by_request(i, o, lambda request, batch: request)),
    ("company_does_not_matter", lambda i, o: o + (len(i.query_lengths) > 1)),
    ("company_does_not_matter", lambda i, o: by_request(i, o, lambda request, batch: request == batch - 1 > 0)),
    ("poison_changes_no_bit", lambda i, o: o + i.kv.value[0, 0, 0, 0].nan_to_num(4096.0)),
    ("poison_changes_no_bit", lambda i, o: o + i.kv.value[0, 0, 0, 0].nan_to_num(1.0).clamp(max=0.0)),
    ("poison_changes_no_bit", lambda i, o: o + stale_token(i).nan_to_num(4096.0).to(o.dtype)),
]


def job(name, function):
    (prop,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("sliding_attention", name="device", supports={"sinks": (False,), "layout": ("PA_BSND",)})(
        function
    )
    return Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)


@pytest.mark.parametrize(("name", "change"), VARIANTS, ids=[f"{i}-{name}" for i, (name, _) in enumerate(VARIANTS)])
def test_a_relation_sees_a_device_that_breaks_it(name, change):
    def device(inputs, target):
        return {"output": change(inputs, torch_native(inputs, target))}

    assert run_job(job(name, device), Budget(examples=60, seed=1, shrink=False)).verdict is Verdict.WRONG


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_every_relation_is_broken_by_some_device_above_and_held_by_a_right_one(name):
    def device(inputs, target):
        return {"output": torch_native(inputs, target)}

    assert name in {variant for variant, _ in VARIANTS}
    assert run_job(job(name, device), Budget(examples=20, seed=1, shrink=False)).verdict is Verdict.HOLDS
