"""Whether a version's schema accepts a call as it is, and if not, why."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from npudiff.device.contract.calls import Call
from npudiff.model.contract import ACCEPTED, Answer, Standing

if TYPE_CHECKING:
    from torch._C import FunctionSchema

_SCALARS: Mapping[str, frozenset[str]] = {
    "Tensor": frozenset(("Tensor",)),
    "int": frozenset(("int", "bool", "dtype")),  # a dtype is a number to the dispatcher, ScalarType and int are one
    "float": frozenset(("float", "int", "bool")),
    "bool": frozenset(("bool",)),
    "str": frozenset(("str",)),
}
"""Kinds of values that torch's dispatcher takes for each type; a test asks it.

It takes more than that: None for a tensor, which the operator then lacks, and numbers and None for a bool. Whoever
passes these means something else, so it is not accepted here.
"""


def answer(call: Call, listed: Mapping[str, str], base: Mapping[str, str]) -> Answer:
    """Say what a version makes of a call.

    Parameters
    ----------
    call : Call
        The form of the call.
    listed : mapping
        Schemas of the version, by ``name`` or ``name.overload``.
    base : mapping
        Schemas of the version that the adapters are written for.

    Returns
    -------
    Answer
        Accepted; missing, where there is no operator of this name; refused, where it would not bind; or changed, where
        it binds and may mean something else, because a default that the call relies on, the order of arguments or the
        outputs are others. Of several overloads one that accepts is enough, unless the call names its overload.
    """
    candidates = _overloads(call.operator, listed)
    if not candidates:
        return Answer(Standing.MISSING, "no such operator")
    answers = [_of_schema(call, candidates[name], base.get(name)) for name in sorted(candidates)]
    order = (Standing.ACCEPTED, Standing.CHANGED, Standing.REFUSED)
    return min(answers, key=lambda one: order.index(one.standing))


def _overloads(operator: str, listed: Mapping[str, str]) -> dict[str, str]:
    """The overload that is named, or all of an operator."""
    if "." in operator:
        return {operator: listed[operator]} if operator in listed else {}
    return {name: schema for name, schema in listed.items() if name.partition(".")[0] == operator}


def _of_schema(call: Call, schema: str, base: str | None) -> Answer:
    reason = refusal(call, schema)
    if reason:
        return Answer(Standing.REFUSED, reason)
    change = "" if base is None or base == schema else changed_meaning(call, schema, base)
    return Answer(Standing.CHANGED, change) if change else ACCEPTED


def refusal(call: Call, schema: str) -> str:
    """Return why a call does not bind to a schema; empty if it does."""
    arguments = parsed(schema).arguments
    by_place = [one for one in arguments if not one.kwarg_only]
    if len(call.positional) > len(by_place):
        return f"{len(call.positional)} positional arguments where {len(by_place)} are taken"
    given = dict(zip((one.name for one in by_place), call.positional, strict=False))
    known = {one.name for one in arguments}
    for name in call.keywords:
        if name not in known:
            return f"no argument {name!r}"
        if name in given:
            return f"argument {name!r} is given twice"
    given |= call.keywords
    for one in arguments:
        if one.name not in given:
            if not one.has_default_value():
                return f"argument {one.name!r} has no default and is left out"
            continue
        strange = sorted(kind for kind in given[one.name] if not takes(one, kind))
        if strange:
            return f"argument {one.name!r} is {type_text(one)}, and {' or '.join(strange)} is passed"
    return ""


def takes(argument: Any, kind: str) -> bool:  # noqa: ANN401 - torch._C.Argument, which has no stub
    """Whether torch's dispatcher takes a value of a kind for an argument."""
    type_name = type_text(argument)
    if type_name.endswith("?"):
        if kind == "None":
            return True
        type_name = type_name[:-1]
    if not type_name.endswith("[]"):
        return kind in _SCALARS.get(type_name, ())
    element = type_name[:-2]
    if not kind.endswith("[]"):
        # int[2] takes one number for all its elements
        return argument.N is not None and kind != "dtype" and kind in _SCALARS.get(element, ())
    return set(filter(None, kind[:-2].split("+"))) <= _SCALARS.get(element, frozenset())


def type_text(argument: Any) -> str:  # noqa: ANN401 - torch._C.Argument, which has no stub
    """Return an argument's type as schemas write it, ``int[]?`` for ``Optional[List[int]]``."""
    text = str(argument.type)
    for word, mark in (("Optional[", "?"), ("List[", "[]")):
        if text.startswith(word):
            inner = text[len(word) : -1]
            return f"{inner[5:-1]}[]{mark}" if inner.startswith("List[") else f"{inner}{mark}"
    return text


def changed_meaning(call: Call, schema: str, base: str) -> str:
    """Return in what a call that binds may mean something else than by the base's schema; empty if in nothing."""
    ours, theirs = parsed(base), parsed(schema)
    places = [[one.name for one in side.arguments if not one.kwarg_only] for side in (ours, theirs)]
    for number, (mine, other) in enumerate(zip(*places, strict=False), start=1):
        if number <= len(call.positional) and mine != other:
            return f"positional argument {number} is {other!r}, not {mine!r}"
    left_out = [one for one in ours.arguments if one.name not in (*places[0][: len(call.positional)], *call.keywords)]
    defaults = {one.name: one.default_value for one in theirs.arguments if one.has_default_value()}
    for one in left_out:
        if one.name in defaults and defaults[one.name] != one.default_value:
            return f"argument {one.name!r} is left out and by default {defaults[one.name]!r}, not {one.default_value!r}"
    mine, other = (", ".join(type_text(one) for one in side.returns) for side in (ours, theirs))
    return "" if mine == other else f"returns ({other}), not ({mine})"


@functools.cache
def parsed(schema: str) -> FunctionSchema:
    """Parse a schema, with or without a namespace."""
    import torch  # noqa: PLC0415

    name = schema.partition("(")[0]
    return torch._C.parse_schema(schema if "::" in name else f"npu::{schema}")
