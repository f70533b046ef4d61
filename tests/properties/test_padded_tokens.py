"""Every relation of padded_tokens can fail: for each, a device that breaks what it says. Cases are as they say."""

from __future__ import annotations

import math

import pytest
import torch

from npudiff import implementation
from npudiff.device.ascend.padded_tokens import native, weights_of
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.padded_tokens import Batch, PaddedTokensCase, component
from npudiff.reference.padded_tokens import real_rows
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

BROKEN = {
    "what_padding_holds": lambda i, o: {"output": o["output"] + i.states[-1:].nan_to_num()},
    "more_padding": lambda i, o: {"counts": o["counts"] * i.chunk},
    "every_rank_alone": lambda i, o: {"weights": o["weights"] * len(i.totals)},
}


def verdict(name, device):
    (relation,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("padded_tokens", name="mine")(device)
    within = item.constraints.within(Constraints((relation.within,)))
    job = Job(Subject(component, item, load_target("sim", None)), relation, within)
    return run_job(job, Budget(examples=20, seed=1, shrink=False)).verdict


@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_a_device_that_breaks_it_is_found_and_a_right_one_is_not(name):
    def right(inputs, target):
        return native(inputs, weights_of(inputs), inputs.experts)

    def broken(inputs, target):
        outputs = right(inputs, target)
        return {**outputs, **BROKEN[name](inputs, outputs)}

    assert verdict(name, broken) is Verdict.WRONG
    assert verdict(name, right) is Verdict.HOLDS


@pytest.mark.parametrize(("poison", "seen"), [("large", 4096.0), ("nan", math.nan), ("infinite", math.inf)])
def test_padding_holds_what_it_says_and_real_rows_do_not(poison, seen):
    case = PaddedTokensCase((Batch(1), Batch(9, 4)), chunk=4, top_k=2, poison=poison)
    inputs = component.inputs(case)
    assert real_rows(inputs).tolist() == [True] + [False] * 3 + [True] * 4
    for tensor in (inputs.states, inputs.weights):
        padding = tensor[1:4].float()
        assert torch.allclose(padding, torch.full_like(padding, seen), equal_nan=True)
        assert bool((tensor[[0, 4, 5, 6, 7]].abs() < 16).all())
    assert sorted(set(inputs.experts.flatten().tolist())) == [0, 1, 2, 3]


def test_features_and_values_say_what_a_case_has():
    plain = PaddedTokensCase((Batch(2), Batch(1)))
    assert "real rows are no prefix" not in component.features(plain)
    gathered = PaddedTokensCase((Batch(1), Batch(5, 4)))
    assert {"padding", "real rows are no prefix", "part of a batch"} <= set(component.features(gathered))
    assert component.values(gathered)["split"] == {False, True}
    assert component.values(gathered)["ranks"] == (2,)
    assert component.describe(gathered).startswith("2 ranks of 2 rows · 1 real, 1 real (from 4 on of 5) · to 1 of 4")
    assert component.features(PaddedTokensCase((Batch(2),))) == ["no padding"]
    assert "a rank without real rows" in component.features(PaddedTokensCase((Batch(0),)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batches": ()}, "ranks must lie in 1..64, got 0"),
        ({"chunk": 0}, "chunk must lie in 1..131072, got 0"),
        ({"top_k": 5}, "5 experts cannot be chosen of 4"),
        ({"batches": (Batch(-1),)}, "total and offset of a batch must lie in"),
        ({"batches": (Batch(1, -1),)}, "total and offset of a batch must lie in"),
        ({"chunk": 2**16, "width": 2**16}, "more than"),
        ({"poison": "mild"}, "poison is one of stale, large, nan, infinite, got mild"),
        ({"earlier": "some"}, "earlier is one of all, none, got some"),
        ({"seed": -1}, "seed must lie in 0"),
    ],
)
def test_what_cannot_be_built_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        component.check_case(PaddedTokensCase(**({"batches": (Batch(1),)} | changed)))
