from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.model.case import dumps, from_plain, loads, to_plain
from npudiff.model.constraints import Constraints
from npudiff.properties.sliding_attention import SlidingAttentionCase
from npudiff.properties.sliding_attention import cases as attention_cases
from npudiff.properties.swa_mask import SwaMaskCase
from npudiff.run.discovery import load_components

mask_cases = SwaMaskCase.strategy

DRAWN = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Inner:
    n: int
    name: str = "x"


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    limit: int | None = None
    scale: float = 1.0
    on: bool = False


@DRAWN
@given(st.one_of(attention_cases(Constraints()), mask_cases(Constraints())))
def test_cases_survive_json(case):
    again = loads(type(case), dumps(case))
    assert again == case
    assert repr(again) == repr(case)  # 1 and True are equal, and are not the same
    assert loads(type(case), json.dumps(to_plain(case), indent=3)) == case


def test_a_case_is_one_line_of_plain_json():
    assert dumps(Outer((Inner(1), Inner(2, "ü")), None, 0.5)) == (
        '{"inner":[{"n":1,"name":"x"},{"n":2,"name":"\\u00fc"}],"limit":null,"scale":0.5,"on":false}'
    )


def test_fields_with_defaults_may_be_missing():
    assert loads(Outer, '{"inner": [{"n": 3}]}') == Outer((Inner(3),))


def test_a_whole_number_is_a_float_where_a_float_is_wanted():
    case = loads(Outer, '{"inner": [], "scale": 4}')
    assert repr(case.scale) == "4.0"


def test_a_union_takes_each_of_its_types():
    assert loads(Outer, '{"inner": [], "limit": 5}').limit == 5
    assert loads(Outer, '{"inner": [], "limit": null}').limit is None


@dataclass(frozen=True)
class Chosen:
    version: Literal[0, 1, 2] = 1
    kind: Literal["a", True] = "a"


@pytest.mark.parametrize("text", ["true", "false", "1.0", '"1"', "null", "3", "[1]", "-0.0"])
def test_a_literal_takes_its_own_values_and_not_what_is_equal(text):
    with pytest.raises(ValueError, match=r"case\.version: expected 0, 1, 2, got"):
        loads(Chosen, f'{{"version": {text}}}')


@pytest.mark.parametrize("text", ["1", "1.0", "false", '"b"'])
def test_a_literal_that_is_true_takes_no_number(text):
    with pytest.raises(ValueError, match=r"case\.kind: expected 'a', True, got"):
        loads(Chosen, f'{{"kind": {text}}}')


def test_a_literal_keeps_the_type_of_its_value():
    assert repr(loads(Chosen, '{"version": 0, "kind": true}')) == "Chosen(version=0, kind=True)"


KNOWN = "known: inner, limit, on, scale"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"inner": [{"n": true}]}', "case.inner[0].n: expected int, got bool"),
        ('{"inner": [{"n": 1.0}]}', "case.inner[0].n: expected int, got float"),
        ('{"inner": [{"n": "1"}]}', "case.inner[0].n: expected int, got str"),
        ('{"inner": [{"n": null}]}', "case.inner[0].n: expected int, got NoneType"),
        ('{"inner": [{"n": 1}, {"n": []}]}', "case.inner[1].n: expected int, got list"),
        ('{"inner": [], "on": 1}', "case.on: expected bool, got int"),
        ('{"inner": [], "scale": true}', "case.scale: expected float, got bool"),
        ('{"inner": [], "limit": "4"}', "case.limit: expected int, got str; or case.limit: expected NoneType, got str"),
        ('{"inner": {"0": 1}}', "case.inner: expected a list, got dict"),
        ('{"inner": [[1]]}', "case.inner[0]: expected an object, got list"),
        ("[]", "case: expected an object, got list"),
        ("null", "case: expected an object, got NoneType"),
        ("{}", "case: missing 'inner'"),
        ('{"inner": [], "extra": 1}', f"case: unknown field 'extra'; {KNOWN}"),
        (
            '{"inner": [], "limits": 1}',
            f"case: unknown field 'limits'; did you mean 'limit'? {KNOWN}",
        ),
        ('{"iner": []}', f"case: unknown field 'iner'; did you mean 'inner'? {KNOWN}"),
        ('{"inner": [{}]}', "case.inner[0]: missing 'n'"),
        ('{"x": 1}', f"case: unknown field 'x'; {KNOWN}; missing 'inner'"),
        ('{"inner": [], "__class__": "os.system"}', f"case: unknown field '__class__'; {KNOWN}"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(text, place):
    with pytest.raises(ValueError) as caught:
        loads(Outer, text)
    assert str(caught.value) == place


def test_names_of_a_hostile_object_are_cut_short():
    text = json.dumps({f"{index}" + "x" * 1000: 1 for index in range(1000)})
    with pytest.raises(ValueError) as caught:
        loads(Outer, text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"inner": [' + "9" * 5000 + "]}",
        '{"inner": [], "limit": ' + "9" * 5000 + "}",
        '{"inner": [], "scale": 1' + "0" * 400 + "}",
        '{"inner": [], "scale": "NaN"}',
        '"\\ud800"',
        "\x00",
    ],
)
def test_text_that_is_no_case_is_a_value_error(text):
    with pytest.raises(ValueError):
        loads(Outer, text)


def test_deeply_nested_values_in_place_of_a_number_are_refused():
    deep = 1
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"case\.inner\[0\]\.n: expected int, got list"):
        from_plain(Outer, {"inner": [{"n": deep}]})


def test_huge_integers_are_kept_exactly():
    assert loads(Outer, '{"inner": [{"n": ' + "9" * 4000 + "}]}").inner[0].n == int("9" * 4000)


@pytest.mark.parametrize("scale", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_no_case_of_a_component_has_a_scale_that_is_not_finite(scale):
    (attention,) = load_components(["sliding_attention"])
    case = loads(SlidingAttentionCase, '{"requests": [{"query": 1, "kv": 1}], "scale": ' + scale + "}")
    assert not math.isfinite(case.scale)
    with pytest.raises(ValueError, match="scale"):
        attention.check_case(case)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 10**12])
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = ("requests", "query", "kv", "kv_lengths", "window", "spare", "dtype", "scale", "seed", "page_size", "sinks")
_NEARLY = st.dictionaries(
    st.sampled_from(_FIELDS),
    _JSON
    | st.lists(_JSON, max_size=2)
    | st.lists(st.fixed_dictionaries({"query": _JSON, "kv": st.integers()}), max_size=2),
    max_size=6,
)


@pytest.mark.slow
@settings(DRAWN, max_examples=400)
@given(st.sampled_from([SlidingAttentionCase, SwaMaskCase, Outer]), _JSON | _NEARLY)
def test_arbitrary_json_is_a_case_or_a_value_error(kind, plain):
    try:
        case = loads(kind, json.dumps(plain))
    except ValueError:
        return
    assert type(case) is kind


@settings(DRAWN, max_examples=300)
@given(st.one_of(st.text(max_size=40), st.text(alphabet='{}[]":,0123456789.eE-+tfn \\u', max_size=40)))
def test_arbitrary_text_is_a_case_or_a_value_error(text):
    try:
        loads(Outer, text)
    except ValueError:
        return
    assert json.loads(text)
