"""What is legal is one thing: what ``check_case`` accepts may be asked for, and what may be asked for is accepted."""

from __future__ import annotations

import contextlib
import dataclasses
import typing

import pytest

from draws import default_cases, drawn
from npudiff.model.case import DeclaredCase, declaration, from_plain, loads
from npudiff.model.constraints import Constraints, Numbers
from npudiff.run.discovery import load_component, load_components

COMPONENTS = load_components(())
DECLARED = [component for component in COMPONENTS if issubclass(component.case_type, DeclaredCase)]

every_component = pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
every_declared = pytest.mark.parametrize("component", DECLARED, ids=lambda component: component.name)

PROBES = (
    *range(-1, 18), 24, 31, 33, 48, 63, 96, 100, 255, 1000, 4097, 65_535, 65_536, 65_537, 2**20, 2**31, 2**63,
    0.0, 1e-13, 1e-9, 1e-7, 1e-6, 1e-5, 3e-5, 1e-4, 1e-3, 0.25, 0.5, 0.75, 1.0, 1.5, 1.702, 2.5, 7.0, 7.1, 99.5, 1e3,
    9999.5, 1e5, -3.5, -101.0, 1e9, None, True, False, "", "other", "none", "bfloat16", "float64", "sliced", "PA_NZ",
)  # fmt: skip


def refused(component, case):
    """Why a case is refused, or None."""
    try:
        component.check_case(case)
    except ValueError as error:
        return str(error)
    return None


def probed(component):
    """Cases, each with one field changed, the field, and its value."""
    kinds, cases = typing.get_type_hints(component.case_type), default_cases(component, 2)
    for name in [field.name for field in dataclasses.fields(component.case_type)]:
        for value in PROBES:
            with contextlib.suppress(ValueError):  # a value of another type
                read = from_plain(kinds[name], value)
                for case in cases:
                    yield dataclasses.replace(case, **{name: read}), name, value


def ends(axis):
    """Legal values at the ends of an axis, and between them."""
    legal = axis.legal
    if isinstance(legal, range):
        return [legal[0], legal[-1], legal[len(legal) // 2]]
    if isinstance(legal, Numbers):
        return [float(legal.lowest), float(legal.highest), (legal.lowest + legal.highest) / 2]
    return list(legal)


@every_component
def test_what_is_accepted_may_be_asked_for_and_what_is_not_legal_is_refused_and_named(component):
    flat = []
    if component in DECLARED:
        said = declaration(component.case_type)
        flat = [name for name in said.fields if name in said.axes and said.quantities[name].value is None]
    for case, name, value in probed(component):
        reason = refused(component, case)
        if reason is None:
            for axis, used in component.values(case).items():
                for one in used:
                    assert component.axes[axis].has(one), (name, value, axis, one)
        if name in flat and not component.axes[name].has(value):
            assert (reason or "").startswith(f"{name} "), (name, value, reason)


@every_declared
def test_what_may_be_asked_for_is_accepted_but_for_what_does_not_go_together(component):
    said = declaration(component.case_type)
    flat = [name for name in said.fields if name in said.axes and said.quantities[name].value is None]
    case = default_cases(component, 3)[-1]
    for name in flat:
        for value in [*ends(component.axes[name]), *([None] if component.axes[name].optional else [])]:
            reason = refused(component, dataclasses.replace(case, **{name: value})) or ""
            assert not reason.startswith((f"{name} must lie", f"{name} must be a", f"{name} is one of")), reason


@pytest.mark.parametrize(
    ("name", "axis", "value"),
    [
        ("rms_norm", "epsilon", 1e-4),
        ("kv_rmsnorm_rope_cache", "epsilon", 1e-4),
        ("mla_preprocess", "epsilon", 1e-4),
        ("sliding_attention", "scale", 3.25),
        ("swiglu", "limit", 3.5),
        ("swiglu", "shared_limit", 3.5),
        ("swiglu", "alpha", 1.25),
        ("swiglu", "bias", -2.0),
        ("swiglu_quant", "limit", 3.5),
        ("swiglu_quant", "alpha", 1.25),
        ("swiglu_quant", "glu_bias", -2.0),
        ("moe_experts", "limit", 3.5),
        ("moe_experts", "shared_limit", 3.5),
        ("moe_gating", "scaling", 1.75),
        ("decoder_layer", "limit", 3.5),
        ("decoder_layer", "shared_limit", 3.5),
        ("paged_cache", "head_dims", "48/16"),
        ("rotary", "dims", "24/40"),
        ("rope_cache", "base", 20_000.0),
    ],
)
def test_legal_values_that_are_not_drawn_can_be_asked_for(name, axis, value):
    component = next(component for component in COMPONENTS if component.name == name)
    where = Constraints.of({axis: (value,)}).checked(component.axes, "test")
    found = drawn(component, where, 20)
    assert value in {one for case in found for one in component.values(case)[axis]}
    for case in found:
        component.check_case(case)
        assert where.reason_against(component.values(case)) is None


def test_cases_that_were_written_under_earlier_names_are_read():
    """Findings keep cases as JSON: a renamed field says what it was called."""
    for name, text in {
        "moe_finalize": '{"tokens": 2, "chosen": 3, "skip": true}',
        "moe_gating": '{"tokens": 2, "experts": 8, "chosen": 3}',
        "moe_routing": '{"tokens": 2, "chosen": 3}',
    }.items():
        case = loads(load_component(name).case_type, text)
        assert case.top_k == 3
        assert getattr(case, "residual", True)
