"""Implementations and mutants of rope_cache on the simulator: right ones are never accused, wrong ones always found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from npudiff import implementation
from npudiff.device.ascend import rope_cache as ascend
from npudiff.device.ascend.rope_cache import RepeatedHalves, Rope, read_halves, rope_of
from npudiff.device.mutants import rope_cache as mutants
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import ImplementationRaised, Subject
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.rope_cache import RopeCacheCase, build_inputs, component
from npudiff.reference.rope_scaling import RopeConfig
from npudiff.run.defined import implementations_in
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

ADAPTERS = [item for item in implementations_in(ascend) if item.component == "rope_cache"]
MUTANTS = [item for item in implementations_in(mutants) if item.component == "rope_cache"]

adapters = pytest.mark.parametrize("item", ADAPTERS, ids=lambda item: item.name)

BASE = RopeConfig()
YARN = RopeConfig("yarn", factors=(2.0,))
DEEPSEEK = RopeConfig("deepseek_yarn", 64, 192, factors=(40.0,), mscale=1.0, mscale_all_dim=1.0)
SECTIONS = RopeConfig("linear", max_positions=16, factors=(40.0, 1.0))


def outcome(item, prop, seed, examples, *, shrink=True):
    checked = replace(item, constraints=item.constraints.checked(component.axes, item.name))
    job = Job(Subject(component, checked, load_target("sim", None)), prop, checked.constraints)
    return run_job(job, Budget(examples=examples, seed=seed, shrink=shrink))


def compared(item, case):
    """The mutant against the reference, on one case that it supports."""
    assert item.constraints.reason_against(component.values(case)) is None
    subject = Subject(component, item, load_target("sim", None))
    return EQUIVALENCE.check(subject, case)


def test_every_form_is_here():
    assert {item.name for item in ADAPTERS} == {"from_positions", "get_cos_sin_cache", "get_sin_cos", "rope_table"}


@pytest.mark.few(2)
@adapters
def test_an_adapter_is_right_on_the_simulator(item):
    result = outcome(item, EQUIVALENCE, 1, 100)
    assert result.failure is None, component.describe(result.failure.case)
    assert result.cases >= 98
    for relation in component.relations:
        assert outcome(item, relation, 1, 15).failure is None, relation.name


@adapters
def test_an_adapter_returns_what_it_is_named_for(item):
    names = set(Subject(component, item, load_target("sim", None)).run(build_inputs(RopeCacheCase(BASE))))
    assert names == ({"table"} if item.name == "rope_table" else {"cos", "sin", "softmax_scale"})


def test_buffers_grow_by_rows_that_are_appended():
    rope = RepeatedHalves(BASE, 5, 2, torch.float32, "cpu")
    kept = [buffer.clone() for buffer in rope.buffers]
    for rows in (4, 9, 20):
        rope.ensure(rows)
    assert [buffer.shape for buffer in rope.buffers] == [(18, 64), (18, 64)]
    assert all(torch.equal(buffer[:3], old) for buffer, old in zip(rope.buffers, kept, strict=True))
    whole = RepeatedHalves(BASE, 20, 0, torch.float32, "cpu")
    assert torch.equal(rope.read(torch.tensor([19, 2]))[0], whole.read(torch.tensor([19, 2]))[0])


def test_ropes_are_told_apart_by_all_their_parameters():
    inputs = build_inputs(RopeCacheCase(YARN, other="theta"))
    assert rope_of(inputs, Rope, "cpu").config == YARN
    assert inputs.other.base != YARN.base


def test_the_attribute_error_is_that_of_the_class():
    (item,) = [item for item in MUTANTS if item.name == "mscale_on_the_base_class"]
    with pytest.raises(ImplementationRaised, match="has no attribute 'mscale'"):
        compared(item, RopeCacheCase(BASE))


PLAIN = RopeConfig()
HARD_CODED = ["base", "factors", "max_positions", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow",
              "truncate", "extrapolation_factor", "attention_factor", "mscale", "mscale_all_dim"]  # fmt: skip


def with_default(inputs, target, field):
    """A right implementation that reads one field of the configuration nowhere."""
    config = inputs.config
    if field.startswith("mscale") and config.mscale is not None:
        changed = replace(config, mscale=1.0) if field == "mscale" else replace(config, mscale_all_dim=1.0)
    elif field == "factors" and config.kind != "base":
        changed = replace(config, factors=(2.0,) * len(config.factors))
    else:
        changed = replace(config, **{field: getattr(PLAIN, field)})
    return read_halves(replace(inputs, config=changed), target.device)


@pytest.mark.slow
@pytest.mark.parametrize("field", HARD_CODED)
def test_a_configuration_value_that_is_hard_coded_is_found(field):
    box = {"sections": (1,)}  # the rows of sections follow from their factors, so other factors read beyond the table
    item = implementation("rope_cache", name=field, supports=box)(lambda i, t: with_default(i, t, field))
    for seed in range(5):
        assert outcome(item, EQUIVALENCE, seed, 100, shrink=False).failure is not None


def wrong_base(config, device):
    """Dynamic scaling with the exponent of the dims instead of rotary_dim / (rotary_dim - 2)."""
    grown = config.base * (config.factor**2 - config.factor + 1)
    return 1.0 / torch.pow(grown, torch.arange(0, config.rotary_dim, 2, device=device) / config.rotary_dim)


def by_length(config, device, length=4096):
    """Dynamic scaling that follows a sequence shorter than the table, as that of transformers does."""
    growth = max(1.0, config.factor * length / config.max_positions - (config.factor - 1))
    base = config.base * growth ** (config.rotary_dim / (config.rotary_dim - 2))
    return 1.0 / torch.pow(base, torch.arange(0, config.rotary_dim, 2, device=device) / config.rotary_dim)


def half_precision(config, device):
    return ascend.inverse_frequencies(config, device).to(torch.float16).float()


def natural_turns(config, device):
    """YaRN's corners with a logarithm that forgets the 2 pi of a turn; other kinds as they are."""
    if config.kind != "yarn":
        return ascend.inverse_frequencies(config, device)
    scaled = replace(config, beta_fast=config.beta_fast / (2 * math.pi), beta_slow=config.beta_slow / (2 * math.pi))
    return ascend.inverse_frequencies(scaled, device)


@pytest.mark.parametrize(
    ("frequencies", "kind"),
    [(wrong_base, "dynamic"), (by_length, "dynamic"), (half_precision, "base"), (natural_turns, "yarn")],
)
def test_wrong_frequencies_are_found(frequencies, kind):
    class Wrong(RepeatedHalves):
        def __init__(self, *given):
            super().__init__(*given)
            self.inv_freq = frequencies(self.config, self.device)
            self.buffers = self.build(min(self.first_row, self.rows), self.rows)

    def device(inputs, target):
        return read_halves(inputs, target.device, Wrong)

    item = implementation("rope_cache", name="wrong", supports={"kind": (kind,)})(device)
    for seed in range(5):
        assert outcome(item, EQUIVALENCE, seed, 100, shrink=False).verdict is Verdict.WRONG


@pytest.mark.slow
@adapters
def test_no_false_alarm_in_3000_cases(item, record_property):
    result = outcome(item, EQUIVALENCE, 2, 3000)
    record_property("worst_ratio", result.worst_ratio)
    assert result.failure is None
    for relation in component.relations:
        assert outcome(item, relation, 2, 500).failure is None, relation.name
