"""Cases of context parallel: what is dealt to ranks, what is drawn, and relations between ways of dealing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff.device import ascend, mutants, targets
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints
from npudiff.model.job import Job
from npudiff.properties.context_parallel import component
from npudiff.properties.context_parallel.case import ContextParallelCase, Request
from npudiff.properties.context_parallel.inputs import POISON, build_inputs, dealt, whole_of
from npudiff.reference.context_parallel import context_parallel
from npudiff.run.engine import run_case
from npudiff.run.ranks import with_ranks

CASE = ContextParallelCase((Request(2, 37), Request(2, 5)), "decode", 2, 16, 4, own_heads=3, kv_heads=2, head_dim=64)
RELATIONS = {relation.name: relation for relation in component.relations}
MUTANTS = {item.name: item for item in map(vars(mutants).get, mutants.__all__)}
SIM = with_ranks(targets.sim(None), 60.0)


@pytest.fixture(scope="module", autouse=True)
def ranks_end():
    """Those that were started here end here."""
    yield
    SIM.on_ranks.close()


@pytest.mark.parametrize("changes", [{"ranks": 1, "own_heads": 6}, {"ranks": 3, "own_heads": 2}, {"interleave": 16}])
def test_the_same_tokens_dealt_otherwise_are_the_same_attention(changes):
    inputs, other = build_inputs(CASE), replace(CASE, **changes)
    again = dealt(whole_of(inputs, CASE), other)
    one, two = (context_parallel(given)["output"].value for given in (inputs, again))
    tokens = len(inputs.query)
    heads = [torch.cat(list(output.split(tokens)), dim=1) for output in (one, two)]
    torch.testing.assert_close(*heads, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("stage", ["decode", "prefill"])
def test_pools_hold_the_history_and_poison_and_nothing_else(stage):
    case = replace(CASE, stage=stage, own_heads=6)
    inputs = build_inputs(case)
    for rank in range(2):
        written = (inputs.value_cache[rank] != POISON).any(dim=-1).any(dim=-1)
        assert int(written.sum()) == sum(case.tokens_of(rank, request.kv - request.query) for request in case.requests)


def test_keys_of_poison_are_those_that_queries_like_best():
    for recipe in ("needle", "hot", "cold", "uneven"):
        inputs = build_inputs(replace(CASE, recipe=recipe))
        nobody = inputs.key_cache[0, 0, 0, 0].double()
        scores = inputs.query.double() @ nobody * inputs.scale
        real = torch.einsum("thd,bshd->tbsh", inputs.query.double()[:, :2], inputs.key_cache[0, 1:].double())
        assert (scores.amin() > 2) if recipe == "needle" else (scores.amin() > 60), recipe
        assert real.isfinite().all()


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"ragged": (False,)}, lambda case: len(case.query_length) == 1),
        ({"prefix": (False,)}, lambda case: all(one.query == one.kv for one in case.requests)),
        ({"new_shard": (True,)}, lambda case: case.sharded and case.ranks > 1 and max(case.query_length) > 1),
        (
            {"empty_chunks": (False,), "stage": ("prefill",)},
            lambda case: min(case.query_length) >= 2 * case.ranks,
        ),
    ],
)
def test_cases_are_drawn_as_they_are_asked_for(wanted, holds):
    assert all(holds(case) for case in drawn(component, Constraints((wanted,)), 12))


def test_what_bugs_need_is_drawn_often():
    cases = list(drawn(component, Constraints(), 150))
    shares = {
        name: sum(name in component.features(case) for case in cases) / len(cases)
        for name in ("several ranks", "empty shard", "drafts that reach a new rank", "uneven chunks", "empty chunks")
    }
    assert shares["several ranks"] > 0.6
    assert min(shares.values()) > 0.05, shares


def outcome(item, relation, case):
    return run_case(Job(Subject(component, item, SIM), RELATIONS[relation], item.constraints), case)


@pytest.mark.parametrize(
    ("name", "relation"),
    [
        ("fia_masked_drafts", "number_of_ranks"),
        ("lse_gathered", "interleave_size"),
        ("fia_flattened_drafts", "place_of_pages"),
    ],
)
def test_relations_hold_of_right_implementations(name, relation):
    assert outcome(vars(ascend)[name], relation, CASE).failure is None


@pytest.mark.parametrize(
    ("name", "relation", "case"),
    [
        ("context_empty_shard_weighs", "number_of_ranks", replace(CASE, requests=(Request(1, 1),))),
        ("context_drafts_before_the_first_key", "interleave_size", replace(CASE, requests=(Request(2, 5),))),
        ("prefill_tails_in_order", "number_of_ranks", replace(CASE, requests=(Request(8, 8),), stage="prefill")),
    ],
)
def test_relations_see_bugs_without_knowing_what_is_right(name, relation, case):
    assert outcome(MUTANTS[name], relation, case).failure is not None
