from __future__ import annotations

from functools import partial

import pytest

import draws
from npudiff.model.constraints import Constraints, parse_where
from npudiff.properties.sliding_attention import build_inputs, component
from npudiff.properties.sliding_attention.case import DIMS, POISONS, RECIPES, SlidingAttentionCase
from npudiff.properties.sliding_attention.strategy import PAGE_SIZES
from npudiff.reference.sliding_attention import sliding_attention
from shortest import shortest

check_case = SlidingAttentionCase.check
features = SlidingAttentionCase.features
values = SlidingAttentionCase.values

SUPPORTED = {
    "anything": {},
    "decode only": {"query_length": (1,), "kv_length": range(1, 4097)},
    "drafts": {"query_length": range(2, 17), "dtype": ("bfloat16",), "fully_masked_rows": ("none",)},
    "sixteens": {"query_length": range(16, 513, 16), "page_size": range(16, 1025, 16)},
    "short": {"kv_length": range(257), "query_length": range(2, 513)},
    "no empty requests": {"kv_length": range(1, 2**20), "fully_masked_rows": ("none",), "batch": range(1, 65)},
    "empty requests": {"fully_masked_rows": ("none", "empty")},
    "unusual sizes": {"kv_heads": (4, 8), "group": (16, 64), "head_dims": ("512/384",), "page_size": (80,)},
    "plain data": {
        "recipe": ("gaussian",),
        "poison": ("large",),
        "scale": (1.0,),
        "sinks": (False,),
        "hybrid": (False,),
    },
    "forced sinks": {"sinks": (True,), "recipe": ("cold", "needle"), "window": range(1, 600), "padded_rows": (5,)},
    "full attention": {"window": (None,), "padded_rows": (0,)},
    "far": {"kv_length": range(200_000, 2**20), "window": (4096,)},
    "two boxes": [
        {"head_dims": ("192",), "window": (None,)},
        {"head_dims": ("64", "128"), "page_size": (128, 256), "query_length": (1,), "window": range(1, 2**31)},
    ],
}
WHERE = (
    ["kv_length=131072", "window=4096"],
    ["kv_length=131072", "window=none"],
    ["query_length=1", "kv_length=4096..9000", "page_size=128"],
    ["batch=7", "kv_heads=5", "group=4"],
    ["window=1..3", "dtype=float16", "sinks=true", "poison=nan"],
)


def drawn(constraints, count=500, number=0):
    """``count`` cases; the seed is fixed so that a test sees the same ones every time."""
    return draws.drawn(component, constraints, count, number)


@pytest.fixture(scope="module")
def default_cases():
    return drawn(Constraints())


def assert_inside(constraints, count=150):
    found = drawn(constraints, count)
    assert len(set(found)) > min(40, count // 3)
    for case in found:
        check_case(case)
        assert constraints.reason_against(values(case)) is None, case


@pytest.mark.few(5)
@pytest.mark.parametrize("name", SUPPORTED)
def test_every_case_lies_within_what_is_supported(name):
    assert_inside(Constraints.of(SUPPORTED[name]))


@pytest.mark.slow
@pytest.mark.parametrize("texts", WHERE, ids=" ".join)
def test_every_case_lies_within_what_a_user_asks_for(texts):
    assert_inside(parse_where(texts))
    assert_inside(Constraints.of(SUPPORTED["anything"]).within(parse_where(texts)))


@pytest.mark.parametrize("name", component.profiles)
def test_every_case_lies_within_a_models_profile(name):
    assert_inside(Constraints.of(component.profiles[name]))


@pytest.mark.parametrize("where", [["kv_length=100"], ["window=513", "query_length=1"]])
def test_every_box_of_a_union_is_drawn_from(where):
    boxes = [{"head_dims": ("192",), "dtype": ("float16",)}, {"head_dims": ("64",), "dtype": ("bfloat16",)}]
    constraints = Constraints.of(boxes).within(parse_where(where))
    found = {(case.head_dim, case.dtype) for case in drawn(constraints, 60)}
    assert found == {(192, "float16"), (64, "bfloat16")}


@pytest.mark.parametrize(
    "box", [{"query_length": (1, 16), "kv_length": (8,)}, {"query_length": range(9, 513), "kv_length": range(50)}]
)
def test_a_short_history_does_not_lead_out_of_the_box(box):
    assert_inside(Constraints.of(box))


@pytest.mark.parametrize("kind", ["any", "empty"])
def test_blind_rows_can_be_asked_for(kind):
    assert_inside(Constraints.of({"fully_masked_rows": (kind,)}))


def test_a_long_range_is_drawn_to_its_end():
    found = drawn(Constraints.of({"kv_length": range(200_000, 2**20)}), 100)
    assert max(request.kv for case in found for request in case.requests) > 600_000


@pytest.mark.slow
def test_default_cases_can_be_built(default_cases):
    assert len(default_cases) == 500
    for case in default_cases:
        check_case(case)


@pytest.mark.slow
def test_default_cases_reach_every_region(default_cases):
    reached = {feature for case in default_cases for feature in features(case)}
    assert reached == {
        "query length 1",
        "query length 2..8",
        "mixed batch",
        "prefix",
        "window cuts",
        "long history",
        "request without rows",
        "partial page",
        "blind rows",
        "NZ pages",
        "pages in a run",
        "sliced rows",
    }
    by_axis = {axis: {value for case in default_cases for value in values(case)[axis]} for axis in component.axes}
    assert by_axis["recipe"] == set(RECIPES)
    assert by_axis["poison"] == set(POISONS)
    assert by_axis["dtype"] == {"bfloat16", "float16"}
    assert by_axis["layout"] == {"PA_BSND", "PA_NZ"}
    assert by_axis["sinks"] == by_axis["hybrid"] == {False, True}
    assert by_axis["page_size"] == set(PAGE_SIZES)
    assert by_axis["fully_masked_rows"] == {"none", "empty", "any"}
    assert by_axis["scale"] == {0.5, 1.0, 4.0}
    assert {None, 1} < by_axis["window"]
    assert len(by_axis["window"]) > 12
    assert set(DIMS) < by_axis["head_dims"]
    assert {1, 2, 3, 4} <= by_axis["batch"]
    assert {0} < by_axis["padded_rows"]
    assert {0, 1} < by_axis["kv_length"]
    assert by_axis["group"] > {1, 2, 3}
    assert by_axis["kv_heads"] > {1, 2, 3}


def test_default_cases_mix_what_bugs_need_together(default_cases):
    def count(holds):
        return sum(map(holds, default_cases))

    assert count(lambda case: {"query length 1", "window cuts"} <= set(features(case))) > 50
    assert count(lambda case: {"mixed batch", "window cuts"} <= set(features(case))) > 10
    assert count(lambda case: case.hybrid and case.sinks and case.window is not None) > 20
    assert count(lambda case: case.recipe == "needle" and case.poison == "nan") > 10
    assert count(lambda case: case.head_dim != case.value_head_dim) > 10
    assert count(lambda case: case.window is None) > 10
    border = {-1, 0, 1}
    for request_border in (
        lambda case, request: case.window is not None and request.kv - case.window in border,
        lambda case, request: (request.kv + 1) % case.page_size - 1 in border,
    ):
        assert count(lambda case, near=request_border: any(near(case, request) for request in case.requests)) > 50


@pytest.mark.slow
def test_1500_default_cases_reach_histories_of_100_000_tokens():
    """Hypothesis repeats what it drew, so 500 cases hold such a history in two of three runs only."""
    longest = max(
        request.kv for number in (1, 2, 4) for case in drawn(Constraints(), 500, number) for request in case.requests
    )
    assert longest >= 100_000


def test_the_first_case_is_the_plainest():
    plainest = drawn(Constraints(), 1)[0]
    assert [(request.query, request.kv) for request in plainest.requests] == [(1, 1)]
    assert (plainest.seed, plainest.recipe, plainest.poison, plainest.dtype) == (0, "gaussian", "large", "bfloat16")
    assert not plainest.sinks
    assert not plainest.hybrid


def test_sinks_stay_out_of_cold_cases_unless_they_are_forced(default_cases):
    """Next to a sink, scores of -60,000 weigh nothing: the output would be zero whatever a device does."""
    assert not any(case.sinks for case in default_cases if case.recipe == "cold")


@pytest.mark.slow
def test_no_default_case_is_dear(default_cases):
    """The dearest measured is 0.3 s."""
    for case in default_cases + drawn(Constraints(), 500, 3):
        assert case.heads * sum(request.query * request.kv for request in case.requests) < 2**24
    for case in default_cases[::3]:
        assert shortest(partial(sliding_attention, build_inputs(case)), enough=1.5) <= 1.5, case


@pytest.mark.slow
def test_drafts_of_the_sizes_that_kernels_have_are_drawn_more_often_than_their_neighbours():
    constraints = Constraints.of({"query_length": range(2, 9), "batch": (1,), "fully_masked_rows": ("none",)})
    sizes = [case.requests[0].query for case in drawn(constraints, 600)]
    assert all(size in sizes for size in range(2, 9))
    assert sizes.count(8) > 1.5 * sizes.count(7)
