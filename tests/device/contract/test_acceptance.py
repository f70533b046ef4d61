"""Which schema accepts which call, and that torch's dispatcher thinks the same."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.contract.acceptance import answer, changed_meaning, parsed, refusal, takes, type_text
from npudiff.device.contract.calls import Call, kind_of
from npudiff.model.contract import ACCEPTED, Answer, Standing

SCHEMA = "npu_f(Tensor x, int k, Tensor? bias=None, *, int[]? sizes=None, str mode='half', float eps=1e-06) -> Tensor"


def call(text):
    return Call.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "npu_f(Tensor, int)",
        "npu_f(Tensor, k=int)",
        "npu_f(Tensor, int, None|Tensor)",
        "npu_f(Tensor, int, bias=Tensor, sizes=int[], mode=str, eps=float)",
        "npu_f(Tensor, int, sizes=None)",
        "npu_f(Tensor, int, sizes=[])",
        "npu_f(k=int, x=Tensor)",
    ],
)
def test_calls_that_bind(text):
    assert refusal(call(text), SCHEMA) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("npu_f(Tensor, int, learnable_sink=Tensor)", "no argument 'learnable_sink'"),
        ("npu_f(Tensor)", "argument 'k' has no default and is left out"),
        ("npu_f(Tensor, int, x=Tensor)", "argument 'x' is given twice"),
        ("npu_f(Tensor, int, Tensor, int[])", "4 positional arguments where 3 are taken"),
        ("npu_f(Tensor, int, sizes=int)", "argument 'sizes' is int[]?, and int is passed"),
        ("npu_f(Tensor, int, sizes=Tensor[])", "argument 'sizes' is int[]?, and Tensor[] is passed"),
        ("npu_f(Tensor, int, mode=None|str)", "argument 'mode' is str, and None is passed"),
        ("npu_f(Tensor, None|float)", "argument 'k' is int, and None or float is passed"),
    ],
)
def test_calls_that_do_not_bind_and_why(text, reason):
    assert refusal(call(text), SCHEMA) == reason


def test_an_operator_that_is_not_listed_is_missing():
    assert answer(call("npu_g()"), {"npu_f": SCHEMA}, {}) == Answer(Standing.MISSING, "no such operator")
    assert answer(call("npu_f.out()"), {"npu_f": SCHEMA}, {}).standing is Standing.MISSING


def test_one_overload_that_accepts_is_enough_unless_the_call_names_another():
    listed = {"npu_f": SCHEMA, "npu_f.List": "npu_f.List(Tensor[] x) -> Tensor"}
    assert answer(call("npu_f(Tensor[])"), listed, {}) == ACCEPTED
    assert answer(call("npu_f(Tensor, int)"), listed, {}) == ACCEPTED
    assert answer(call("npu_f.List(Tensor, int)"), listed, {}).standing is Standing.REFUSED


@pytest.mark.parametrize(
    ("text", "change", "expected"),
    [
        ("npu_f(Tensor, int)", ("'half'", "'full'"), "argument 'mode' is left out and by default 'full', not 'half'"),
        ("npu_f(Tensor, int, mode=str)", ("'half'", "'full'"), ""),
        ("npu_f(Tensor, int)", ("Tensor x, int k", "Tensor x, int n"), "positional argument 2 is 'n', not 'k'"),
        ("npu_f(Tensor, int)", ("float eps=1e-06", "float eps=1e-06, int more=0"), ""),
        ("npu_f(Tensor, int)", ("-> Tensor", "-> (Tensor, int)"), "returns (Tensor, int), not (Tensor)"),
        ("npu_f(Tensor, int)", ("Tensor? bias=None", "Tensor? offset=None"), ""),
    ],
)  # fmt: skip
def test_a_call_that_binds_may_mean_something_else(text, change, expected):
    theirs = SCHEMA.replace(*change)
    assert changed_meaning(call(text), theirs, SCHEMA) == expected
    standing = Standing.CHANGED if expected else Standing.ACCEPTED
    assert answer(call(text), {"npu_f": theirs}, {"npu_f": SCHEMA}) == Answer(standing, expected)


VALUES = (
    None, 1, True, 1.5, "text", torch.int8, torch.ones(2), [], [1, 2], [1.5], [True], [torch.ones(2)],
    [torch.ones(2), None], [None], ["text"],
)  # fmt: skip
TYPES = (
    "Tensor", "Tensor?", "Tensor[]", "Tensor[]?", "int", "int?", "ScalarType", "ScalarType?", "float", "float?", "bool",
    "str", "str?", "int[]", "int[]?", "int[2]", "SymInt[]", "SymInt[]?",
)  # fmt: skip


@pytest.fixture(scope="module")
def dispatcher():
    """An operator per type, of which the dispatcher knows what it takes."""
    library = torch.library.Library("npudiff_types", "DEF")
    for number, name in enumerate(TYPES):
        library.define(f"f{number}(Tensor t, {name} a) -> ()")
        library.impl(f"f{number}", lambda t, a: None, "CPU")
    yield lambda number, value: getattr(torch.ops.npudiff_types, f"f{number}")(torch.ones(1), value)
    library._destroy()


BY_TRUTH = {"None": True, "int": True, "float": True}
STRICTER = {"Tensor": {"None": True}, "bool": BY_TRUTH}
"""What the dispatcher takes and the contract does not: see acceptance._SCALARS."""


@pytest.mark.parametrize("number", range(len(TYPES)), ids=TYPES)
def test_torchs_dispatcher_takes_the_same_values(dispatcher, number):
    (argument,) = [one for one in parsed(f"f(Tensor t, {TYPES[number]} a) -> ()").arguments if one.name == "a"]
    judged, taken = {}, {}
    for value in VALUES:
        kind = kind_of(value)
        judged[kind] = takes(argument, kind)
        try:
            dispatcher(number, value)
        except (RuntimeError, TypeError):
            taken[kind] = False
        else:
            taken[kind] = True
    assert judged | STRICTER.get(TYPES[number], {}) == taken
    assert not any(judged[kind] for kind in STRICTER.get(TYPES[number], {}))


@pytest.mark.parametrize("name", ["Tensor", "Tensor?", "Tensor[]", "Tensor[]?", "int", "int[]?", "str?", "float"])
def test_types_are_written_as_in_schemas(name):
    assert type_text(parsed(f"f({name} a) -> ()").arguments[0]) == name
