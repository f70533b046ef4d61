from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.judge.pattern import NOWHERE
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints, parse_where
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.cache_gather import CacheGatherCase, Stretch, build_inputs, component, page_names
from npudiff.reference.cache_gather import cache_gather, token_slots
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

check_case = CacheGatherCase.check
describe = CacheGatherCase.describe
features = CacheGatherCase.features
values = CacheGatherCase.values

BUSY = CacheGatherCase(
    (Stretch(17, 16), Stretch(0, 48), Stretch(32), Stretch(5, 32)),
    starts="page",
    spare_rows=2,
    head_dim=192,
    value_head_dim=128,
    layout="PA_NZ",
    shared_pages=1,
    unused="-1",
    spare_columns=1,
    seed=3,
)


def run(inputs, target):
    return {name: expected.value for name, expected in cache_gather(inputs).items()}


# Each breaks one relation, and holds the two others.
BROKEN = {
    "page_names_do_not_matter": lambda i, key: key * (-1 if bool((i.block_table.diff() == 1).any()) else 1),
    "pieces_equal_whole": lambda i, key: key.flip(0) if int(i.lengths.max()) > i.page_size else key,
    "layouts_agree": lambda i, key: -key if i.layout == "PA_BSND" else key,
}


def outcome(name, function, examples=40, supports=None):
    (prop,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("cache_gather", name="device", supports=supports)(function)
    job = Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)
    return run_job(job, Budget(examples=examples, seed=1, shrink=False))


@pytest.mark.few(1)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_a_relation_sees_the_device_that_breaks_it(name):
    def device(inputs, target):
        outputs = run(inputs, target)
        return {**outputs, "key": BROKEN[name](inputs, outputs["key"])}

    assert outcome(name, run).verdict is Verdict.HOLDS
    assert outcome(name, device).verdict is Verdict.WRONG


@pytest.mark.slow
@pytest.mark.parametrize("supports", [None, {"starts": ("none", "page")}, {"layout": ("PA_BSND", "PA_NZ")}])
def test_relations_apply_to_every_case_that_is_drawn(supports):
    for relation in component.relations:
        assert not outcome(relation.name, run, 15, supports).not_applicable


def test_a_device_without_starts_or_with_one_layout_is_not_asked_for_others():
    for name, supports in (("pieces_equal_whole", {"starts": ("none",)}), ("layouts_agree", {"layout": ("PA_NZ",)})):
        found = outcome(name, run, 5, supports)
        assert found.verdict is Verdict.NOT_APPLICABLE
        assert not found.not_applicable  # nothing was drawn for it


@pytest.mark.slow
def test_cases_are_where_bugs_live():
    cases = drawn(component, Constraints(), 300)
    shares = {name: sum(name in features(case) for case in cases) / len(cases) for name in features(BUSY)}
    assert min(shares.values()) > 0.15, shares


def test_features_and_description():
    assert set(features(BUSY)) == {
        "several requests", "request of 0 tokens", "last page partial", "last page full", "several pages", "starts",
        "NZ", "V dim differs", "shared pages", "rows to spare",
    }  # fmt: skip
    assert describe(BUSY) == (
        "tokens 17@16 0@48 32 5@32 · starts page · 2 spare rows · PA_NZ · page 16 · heads 1 · dim 192/128 · bfloat16"
        " · 1 shared page · 1 spare column · unused -1 · seed 3"
    )


def test_the_block_table_names_the_pages_of_tokens_that_are_read_and_no_others():
    table = build_inputs(BUSY).block_table.tolist()
    assert [[entry == -1 for entry in row] for row in table] == [
        [True, False, False, True],
        [True, True, True, True],
        [False, False, True, True],
        [True, True, False, True],
    ]
    assert BUSY.pages == 2 + 1 + 2 + 1 + 2
    named = [entry for row in table for entry in row if entry != -1]
    assert len(set(named)) == len(named)
    assert min(named) > 0
    assert max(named) < BUSY.pages


def test_shared_pages_are_those_of_every_request():
    case = CacheGatherCase((Stretch(40), Stretch(20), Stretch(50)), shared_pages=2)
    table = build_inputs(case).block_table
    assert torch.equal(table[0, :2], table[1, :2])
    assert torch.equal(table[0, :2], table[2, :2])
    assert int(table[0, 2]) != int(table[2, 2])
    assert case.pages == 2 + 2 + 1 + 0 + 2
    assert int(table.max()) < case.pages


@pytest.mark.parametrize(("unused", "allowed"), [("page 0", {0}), ("-1", {-1}), ("any page", set(range(1, 7)))])
def test_what_unused_entries_hold(unused, allowed):
    case = CacheGatherCase((Stretch(40), Stretch(20)), unused=unused, spare_columns=3)
    table = build_inputs(case).block_table
    assert table.shape == (2, 6)
    assert {int(entry) for entry in [*table[0, 3:], *table[1, 2:]]} <= allowed


def test_the_order_of_two_pages_does_not_depend_on_how_many_there_are():
    for seed in range(8):
        names = page_names(seed, 40)
        assert sorted(names) == list(range(1, 40))
        assert names != sorted(names)
        few = page_names(seed, 6)
        assert [few[i] < few[j] for i in range(5) for j in range(5)] == [
            names[i] < names[j] for i in range(5) for j in range(5)
        ]


def test_elements_tell_where_they_are_from():
    """A token's coordinates lead to its slot, and rows behind the last token are nobody's."""
    inputs = build_inputs(BUSY)
    places = component.coordinates(inputs, "value")
    request, token = places["request"].flatten(), places["token"].flatten()
    assert request.tolist() == [0] * 17 + [2] * 32 + [3] * 5 + [NOWHERE] * 2
    assert token[:3].tolist() == [16, 17, 18]
    assert token[-4:].tolist() == [35, 36, NOWHERE, NOWHERE]
    read = request >= 0
    page, offset = places["logical page"].flatten()[read], places["offset"].flatten()[read]
    slots = inputs.block_table[request[read], page].to(torch.int64) * 16 + offset
    assert torch.equal(slots, token_slots(inputs))


def test_lengths_that_are_asked_for_are_drawn():
    constraints = parse_where(["length=600..610", "page_size=128", "batch=2", "layout=PA_NZ", "starts=page"])
    for case in drawn(component, constraints, 40):
        check_case(case)
        assert constraints.reason_against(values(case)) is None
        assert all(600 <= request.length <= 610 for request in case.requests)


@pytest.mark.parametrize(
    "changed",
    [{"requests": ()}, {"requests": (Stretch(-1),)}, {"requests": (Stretch(1, 8),)}, {"starts": "none"},
     {"starts": "some"}, {"page_size": 0}, {"spare_rows": -1}, {"spare_columns": 2**16}, {"shared_pages": -1},
     {"dtype": "float32"}, {"layout": "NZ"}, {"unused": "0"}, {"seed": 2**63}, {"head_dim": 24},
     {"requests": (Stretch(2**20),), "head_dim": 512}, {"requests": (Stretch(2**20 + 1),)}],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(changed):
    check_case(BUSY)
    with pytest.raises(ValueError, match=r"\w"):
        check_case(replace(BUSY, **changed))
