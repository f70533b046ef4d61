"""The relations of rotary: each can fail, for a device that breaks it, and holds for a right one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff import implementation
from npudiff.device.ascend.rotary import rotate
from npudiff.model.component import Subject
from npudiff.model.constraints import parse_where
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.rotary import DATA, RotaryCase, build_inputs, component, exact_table, turned
from npudiff.reference.rotary import rotary
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_case, run_job

check_case = RotaryCase.check


def right(inputs, _target=None):
    return {name: rotate(inputs, getattr(inputs, name), inputs.rotary_dim) for name in ("query", "key")}


def rescaled(by):
    """Queries and keys that are a little too long."""

    def device(inputs, target):
        return {name: (part.double() * by).to(part.dtype) for name, part in right(inputs).items()}

    return device


def with_table(change):
    """A device that reads another table."""

    def device(inputs, target):
        cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
        return right(replace(inputs, cos_sin_cache=torch.cat(change(cosine, sine), dim=1)))

    return device


def from_zero(inputs, target):
    """Keys that count positions from 0: their distance to a query is wrong, all lengths are right."""
    counted = replace(inputs, positions=torch.zeros_like(inputs.positions))
    return {"query": right(inputs)["query"], "key": right(counted)["key"]}


def mirrored(inputs, target):
    """Keys that turn the other way: scores depend on the sum of positions."""
    cosine, sine = inputs.cos_sin_cache.chunk(2, dim=1)
    other = replace(inputs, cos_sin_cache=torch.cat([cosine, -sine], dim=1))
    return {"query": right(inputs)["query"], "key": right(other)["key"]}


BROKEN = [
    ("tokens_do_not_mix", lambda i, t: {name: part + i.positions[0] % 2 for name, part in right(i).items()}),
    ("heads_do_not_mix", lambda i, t: {"query": right(i)["query"], "key": i.key + 1}),
    ("norm_is_preserved", rescaled(1.03)),
    ("norm_is_preserved", with_table(lambda cosine, sine: [cosine, cosine])),
    ("norm_is_preserved", with_table(lambda cosine, sine: [cosine, torch.zeros_like(sine)])),
    ("relative_positions", from_zero),
    ("relative_positions", mirrored),
    ("relative_positions", with_table(lambda cosine, sine: [cosine, sine.roll(1, 0)])),
]


def job(name, function, supports=None):
    (prop,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("rotary", name="device", supports={"sections": ("none",), **(supports or {})})(function)
    constraints = item.constraints.within(parse_where(["style=half,interleaved"]))
    return Job(Subject(component, item, load_target("sim", None)), prop, constraints)


@pytest.mark.parametrize(("name", "device"), BROKEN, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)])
def test_a_relation_sees_a_device_that_breaks_it(name, device):
    assert run_job(job(name, device), Budget(examples=60, seed=1, shrink=False)).verdict is Verdict.WRONG


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
def test_every_relation_is_broken_by_some_device_above_and_held_by_a_right_one(name):
    assert name in {broken for broken, _ in BROKEN}
    outcome = run_job(job(name, right), Budget(examples=40, seed=1, shrink=False))
    assert outcome.verdict is Verdict.HOLDS
    assert not outcome.not_applicable


NORM, SCORES = "norm_is_preserved", "relative_positions"
CASE = RotaryCase(17, 2, 1, data="cosines", table=4097, positions="scattered")


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 2**-6), ("float16", 2**-9), ("float32", 2**-22)])
def test_a_length_that_is_a_few_roundings_off_is_seen(dtype, least):
    case = replace(CASE, dtype=dtype)
    assert run_case(job(NORM, right), case).verdict is Verdict.HOLDS
    assert run_case(job(NORM, rescaled(1 + least)), case).verdict is Verdict.WRONG


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_what_the_rounding_of_the_table_does_is_within_what_is_allowed_for_it(dtype, style):
    """Both tables, rounded and exact, in float64: how far heads are apart, over what the relations allow for that."""
    case = replace(CASE, dtype=dtype, tokens=65, style=style)
    inputs = build_inputs(case)
    subject = job(NORM, right).subject
    wide = replace(inputs, **{name: getattr(inputs, name).double() for name in ("query", "key", "cos_sin_cache")})
    rounded, exact = rotary(wide), rotary(replace(wide, cos_sin_cache=exact_table(case)))
    for name, (_, allowed) in turned(subject, case, inputs).items():
        apart = (rounded[name].value - exact[name].value).norm(dim=-1)
        for_the_table = allowed - subject.expected(inputs)[name].bound.norm(dim=-1)
        assert 0.4 < float((apart / for_the_table).max()) <= 1


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_scores_that_are_a_few_roundings_off_are_seen(dtype):
    least = {"bfloat16": 2**-4, "float32": 2**-19}[dtype]
    case = replace(CASE, dtype=dtype, rotary_dim=32)
    assert run_case(job(SCORES, right), case).verdict is Verdict.HOLDS

    def device(inputs, target):
        late = 1 + least * (inputs.positions.max() > 3000)
        return {name: (part.double() * late).to(part.dtype) for name, part in right(inputs).items()}

    assert run_job(job(SCORES, device), Budget(examples=60, seed=2)).verdict is Verdict.WRONG


def test_scores_of_queries_alone_are_nobodys_business():
    assert run_job(job(SCORES, lambda i, t: {"query": right(i)["query"]}), Budget(examples=5, seed=1)).verdict is (
        Verdict.NOT_APPLICABLE
    )


def test_the_relation_leaves_out_a_kernel_that_takes_prompts_only():
    assert not Job(job(SCORES, right).subject, job(SCORES, right).prop, parse_where(["positions=consecutive"])).applies


def test_the_table_holds_what_the_axis_says():
    cosine, sine = build_inputs(replace(CASE, dtype="float32")).cos_sin_cache.double().chunk(2, dim=1)
    assert float((cosine.square() + sine.square() - 1).abs().max()) < 1e-6
    assert float(cosine[3, 1]) == pytest.approx(float(torch.tensor(3 * 10_000 ** (-1 / 32)).cos()), abs=1e-6)
    numbers = build_inputs(replace(CASE, dtype="float32", data="numbers")).cos_sin_cache
    assert float(numbers.abs().max()) > 1.5
    assert len(numbers.unique()) > 1000
    with pytest.raises(ValueError, match="data is one of numbers, cosines, got ones"):
        check_case(replace(CASE, data="ones"))
    assert DATA[0] == RotaryCase(1).data
