"""Cases of rope_cache: where they are drawn, what they say about themselves, and that each relation can fail."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from draws import drawn
from npudiff import implementation
from npudiff.device.ascend.rope_cache import RepeatedHalves, read_halves, read_table
from npudiff.model.component import Subject
from npudiff.model.constraints import Constraints, parse_where
from npudiff.model.job import Budget, Job, Verdict
from npudiff.properties.rope_cache import RopeCacheCase, build_inputs, check_case, component, coordinates, describe
from npudiff.reference.rope_cache import rope_cache
from npudiff.reference.rope_scaling import KINDS, RopeConfig, amplitude
from npudiff.run.discovery import load_target
from npudiff.run.engine import run_job

DEFAULTS = RopeConfig()


@pytest.fixture(scope="module")
def default_cases():
    return drawn(component, Constraints(), 600)


def test_every_region_has_its_share(default_cases):
    count = Counter(feature for case in default_cases for feature in component.features(case))
    shares = {feature: number / len(default_cases) for feature, number in count.items()}
    least = {"scaled": 0.6, "amplitude": 0.3, "several factors": 0.02, "partial rotary": 0.3, "offsets": 0.5,
             "dim is no power of two": 0.25, "beyond max positions": 0.25, "large positions": 0.15, "one token": 0.05,
             "grown table": 0.3, "two ropes": 0.4}  # fmt: skip
    assert shares.keys() == least.keys()
    assert not {feature: shares[feature] for feature in least if shares[feature] < least[feature]}


def test_positions_reach_a_million_in_every_kind(default_cases):
    reached = {case.config.kind: 0 for case in default_cases}
    for case in default_cases:
        reached[case.config.kind] = max(reached[case.config.kind], int(build_inputs(case).rows.max()))
    assert set(reached) == set(KINDS)
    assert min(reached.values()) > 900_000


def test_no_field_stays_at_its_default(default_cases):
    """In a quarter of the cases that use it at least: a value that is hard-coded is seen."""
    kinds = {"max_positions": {"llama3", "yarn", "deepseek_yarn"}, "truncate": {"yarn"}}
    yarn = {"beta_fast", "beta_slow", "extrapolation_factor", "attention_factor", "mscale", "mscale_all_dim"}
    kinds |= {field: {"yarn", "deepseek_yarn"} for field in yarn}
    kinds |= {field: {"llama3"} for field in ("low_freq_factor", "high_freq_factor")}
    kinds |= {"factors": {"linear", "dynamic", "llama3", "yarn", "deepseek_yarn"}, "base": set(KINDS)}
    for field, using in kinds.items():
        values = [getattr(case.config, field) for case in default_cases if case.config.kind in using]
        other = [value for value in values if value != getattr(DEFAULTS, field)]
        assert len(other) >= len(values) / 4, field


def test_fields_that_a_kind_does_not_use_are_at_their_default(default_cases):
    for case in default_cases:
        config = case.config
        if config.kind not in ("yarn", "deepseek_yarn"):
            assert (config.beta_fast, config.mscale, config.attention_factor) == (32.0, None, 1.0)
        if config.kind in ("base", "proportional"):
            assert config.factors == (1.0,)


def test_a_case_takes_milliseconds(default_cases):
    """Half of them: inputs, reference and a table, which is built as far as its last rows need."""
    times = []
    for case in default_cases[:120]:
        start = time.perf_counter()
        inputs = build_inputs(case)
        rope_cache(inputs)
        read_table(inputs, "cpu")
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.02


@pytest.mark.parametrize(
    "texts",
    [
        ["kind=yarn", "mscales=1/0.707", "truncate=false"],
        ["kind=deepseek_yarn", "factor=40", "dims=64/192", "betas=32/1"],
        ["kind=linear", "sections=3"],
        ["rows=1048576", "tokens=16"],
        ["rows=500..700", "growths=2", "offsets=int32"],
        ["max_positions=20..30", "kind=yarn"],
        ["other=theta", "base=500000", "dtype=float32"],
    ],
    ids=" ".join,
)
def test_every_case_lies_within_what_a_user_asks_for(texts):
    constraints = parse_where(texts).checked(component.axes, "test")
    found = drawn(component, constraints, 80)
    assert len(set(found)) > 20
    for case in found:
        check_case(case)
        assert constraints.reason_against(component.values(case)) is None, case


def test_rows_are_where_the_case_says():
    case = RopeCacheCase(DEFAULTS, tokens=5, lengths=(20, 100), first_row=40)
    assert build_inputs(case).rows.tolist() == [95, 96, 97, 98, 99]
    start, *rest = build_inputs(replace(case, positions="consecutive", seed=3)).rows.tolist()
    assert [(start + step - 40) % 60 + 40 for step in range(1, 5)] == rest
    scattered = build_inputs(replace(case, positions="scattered", tokens=400)).rows
    assert set(scattered.tolist()) == set(range(40, 100))


@pytest.mark.parametrize("offsets", ["int64", "int32"])
def test_offsets_are_not_zero_and_their_sum_is_a_row(offsets):
    case = RopeCacheCase(DEFAULTS, tokens=300, lengths=(500,), offsets=offsets, positions="scattered")
    inputs, plain = build_inputs(case), build_inputs(replace(case, offsets="none"))
    assert inputs.offsets.dtype == getattr(torch, offsets)
    assert torch.equal(inputs.positions + inputs.offsets, plain.positions)
    assert bool((inputs.positions >= 0).all())
    assert int((inputs.offsets > 0).sum()) >= 299


def test_offsets_of_sections_are_where_they_start():
    config = RopeConfig("linear", max_positions=10, factors=(1.0, 4.0, 2.0))
    case = RopeCacheCase(config, tokens=70, lengths=(70,), offsets="int64")
    inputs = build_inputs(case)
    assert inputs.offsets.tolist() == [0] * 10 + [10] * 40 + [50] * 20
    assert inputs.positions.tolist() == [*range(10), *range(40), *range(20)]


@pytest.mark.slow
def test_the_other_rope_is_another_one():
    for case in drawn(component, Constraints.of({"other": ("plain", "yarn", "theta")}), 150):
        inputs = build_inputs(case)
        assert inputs.other is not None
        assert inputs.other.width == inputs.config.width
        changed = rope_cache(replace(inputs, config=inputs.other)) if not case.config.sections else None
        if changed is not None and int(inputs.rows.max()) > 0:
            assert not torch.equal(changed["table"].value, rope_cache(inputs)["table"].value), describe(case)


def test_coordinates_name_row_pair_and_half():
    inputs = build_inputs(RopeCacheCase(RopeConfig(rotary_dim=4, head_dim=4), tokens=2, lengths=(9,)))
    named = coordinates(inputs, "table")
    assert named["row"].flatten().tolist() == [7, 8]
    assert named["pair"].tolist() == [[0, 1, 0, 1]]
    assert coordinates(inputs, "cos")["half"].tolist() == [[[[0, 0, 1, 1]]]]
    assert coordinates(inputs, "softmax_scale") == {}
    for name, part in rope_cache(inputs).items():
        assert {values.dim() for values in coordinates(inputs, name).values()} <= {part.value.dim()}


def test_a_case_is_described_in_the_words_of_configurations():
    config = RopeConfig("yarn", 64, 192, 5e5, 100, (40.0,), truncate=False, mscale=1.0, mscale_all_dim=0.707)
    case = RopeCacheCase(config, 3, (5, 90), 4, "float32", "scattered", "int32", "plain", 7)
    assert describe(case) == (
        "yarn · factor 40 · dim 64/192 · base 500000 · max positions 100 · betas 32/1 · not truncated · "
        "mscales 1/0.707 · 3 tokens scattered · rows 5 -> 90 · from 4 · int32 offsets · beside plain · float32 · seed 7"
    )
    assert describe(RopeCacheCase(DEFAULTS)) == "base · dim 64 · base 10000 · 1 token last · rows 2 · bfloat16"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": RopeConfig("ntk")}, "kind is one of"),
        ({"config": RopeConfig(max_positions=2**21)}, "max_positions must lie in"),
        ({"dtype": "float64"}, "dtype is one of bfloat16, float16, float32, got float64"),
        ({"positions": "first"}, "positions is one of"),
        ({"offsets": "int16"}, "offsets is one of"),
        ({"other": "linear"}, "other is one of"),
        ({"tokens": 0}, "tokens must lie in 1..131072, got 0"),
        ({"seed": -1}, "seed must lie in 0"),
        ({"lengths": ()}, "lengths must lie in"),
        ({"lengths": (2**21,)}, "lengths must lie in"),
        ({"lengths": (3, 2)}, "lengths must lie in"),
        ({"lengths": (2, 2)}, r"lengths \(2, 2\) must rise"),
        ({"first_row": 2}, "first_row 2 lie within"),
        ({"config": RopeConfig("linear", max_positions=4, factors=(1.0, 2.0))}, r"sections \(4, 8\) has 12 rows"),
        ({"lengths": (2**20,), "config": RopeConfig(head_dim=128, rotary_dim=128)}, "more than .* elements"),
    ],
)
def test_a_case_that_cannot_be_built_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        check_case(replace(RopeCacheCase(DEFAULTS), **changed))


def right(inputs, target):
    return read_halves(inputs, target.device)


def dynamic(inputs, target):
    """Frequencies that depend on the position: rows of the second half of the table turn more slowly."""
    slower = replace(inputs, config=replace(inputs.config, base=inputs.config.base * 1.5))
    late = (inputs.rows >= (inputs.first_row + inputs.lengths[-1]) // 2)[:, None, None, None]
    one, two = right(inputs, target), right(slower, target)
    return {name: torch.where(late, two[name], one[name]) for name in ("cos", "sin")}


def halved_sine(inputs, target):
    result = right(inputs, target)
    return {**result, "sin": result["sin"] / 2}


def unscaled(inputs, target):
    result, factor = right(inputs, target), amplitude(inputs.config)
    return {name: (result[name].float() / factor).to(inputs.dtype) for name in ("cos", "sin")}


class Rebuilt(RepeatedHalves):
    """A table that is filled anew when it grows, with frequencies for its new length."""

    def ensure(self, rows):
        self.inv_freq = self.inv_freq / 2
        self.buffers, self.rows = self.build(self.first_row, rows), rows


BROKEN = [
    ("tokens_do_not_mix", lambda i, t: {"cos": right(i, t)["cos"] + i.rows[0] % 2}),
    ("offsets_are_added", lambda i, t: right(replace(i, offsets=None, first_row=0), t)),
    ("growth_keeps_rows", lambda i, t: read_halves(i, t.device, Rebuilt)),
    ("rows_are_on_a_circle", halved_sine),
    ("rows_are_on_a_circle", unscaled),
    ("relative_positions", dynamic),
    ("relative_positions", lambda i, t: {"table": read_table(i, t.device).clamp(min=-0.9)}),
]


def job(name, function):
    (prop,) = (relation for relation in component.relations if relation.name == name)
    item = implementation("rope_cache", name="device")(function)
    return Job(Subject(component, item, load_target("sim", None)), prop, item.constraints)


@pytest.mark.parametrize(("name", "device"), BROKEN, ids=[f"{i}-{name}" for i, (name, _) in enumerate(BROKEN)])
def test_a_relation_sees_a_device_that_breaks_it(name, device):
    outcome = run_job(job(name, device), Budget(examples=60, seed=1, shrink=False))
    assert outcome.verdict is Verdict.WRONG


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [relation.name for relation in component.relations])
@pytest.mark.parametrize("device", [right, lambda i, t: {"table": read_table(i, t.device)}], ids=["halves", "table"])
def test_every_relation_is_broken_by_some_device_above_and_held_by_a_right_one(name, device):
    assert name in {broken for broken, _ in BROKEN}
    outcome = run_job(job(name, device), Budget(examples=60, seed=1, shrink=False))
    assert outcome.verdict is Verdict.HOLDS
    assert outcome.not_applicable.total() <= 3


def test_relations_about_angles_say_nothing_of_a_device_that_returns_none():
    for name in ("rows_are_on_a_circle", "relative_positions"):
        only_scale = job(name, lambda i, t: {"softmax_scale": right(i, t)["softmax_scale"]})
        assert run_job(only_scale, Budget(examples=5, seed=1)).verdict is Verdict.NOT_APPLICABLE
