"""What must hold between writes of one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.judge.compare import compare, same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import NotApplicable, Property, Subject
from npudiff.properties.paged_cache.case import PagedCacheCase, layout_of
from npudiff.properties.paged_cache.inputs import build_inputs
from npudiff.reference.bounds import exactly
from npudiff.reference.paged_cache import PagedCacheInputs


def _rewrite_is_idempotent(subject: Subject, case: PagedCacheCase) -> Comparison:
    inputs = build_inputs(case)
    once = subject.run(inputs)
    twice = subject.run(replace(inputs, key_cache=once["key_cache"], value_cache=once["value_cache"]))
    return same_bits(_without_dummy(once), _without_dummy(twice), "written once against twice")


def _halves_equal_whole(subject: Subject, case: PagedCacheCase) -> Comparison:
    if case.tokens < 2:
        raise NotApplicable("one token cannot be written in two calls")
    inputs, cut = build_inputs(case), case.tokens // 2
    padded = cut - int(_is_real(inputs)[:cut].sum())
    subject.require(replace(case, tokens=cut - padded, padded_tokens=padded), "the first half")
    rest_padded = case.padded_tokens - padded
    subject.require(replace(case, tokens=case.tokens - cut + padded, padded_tokens=rest_padded), "the second half")
    whole = subject.run(inputs)
    part = replace(inputs, key=inputs.key[:cut], value=inputs.value[:cut], slots=inputs.slots[:cut])
    first = subject.run(part)
    rest = subject.run(
        replace(
            inputs,
            key=inputs.key[cut:],
            value=inputs.value[cut:],
            slots=inputs.slots[cut:],
            key_cache=first["key_cache"],
            value_cache=first["value_cache"],
        )
    )
    return same_bits(_without_dummy(whole), _without_dummy(rest), "two calls against one")


def _what_is_written_is_read(subject: Subject, case: PagedCacheCase) -> Comparison:
    """Read the tokens back by the addresses of the layout."""
    inputs = build_inputs(case)
    outputs = subject.run(inputs)
    real = _is_real(inputs)
    slots = inputs.slots[real].to(torch.int64)
    places = (("key_cache", case.head_dim), ("value_cache", case.value_head_dim))
    read = {name: outputs[name].reshape(-1)[layout_of(case, dim).addresses(slots)] for name, dim in places}
    right = {"key_cache": exactly(inputs.key[real]), "value_cache": exactly(inputs.value[real])}
    return compare(right, read, "read back against what was given")


def _is_real(inputs: PagedCacheInputs) -> torch.Tensor:
    """Which tokens are no padding, bool ``[tokens]``: padded ones go nowhere or to slot 0."""
    return inputs.slots > 0


def _without_dummy(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Leave out page 0; pages are the first axis of every layout."""
    return {name: cache[1:] for name, cache in outputs.items()}


RELATIONS = (
    Property("rewrite_is_idempotent", "writing the same again changes nothing", _rewrite_is_idempotent),
    Property(
        "halves_equal_whole",
        "two calls write what one call writes",
        _halves_equal_whole,
        within={"tokens": range(2, 2**16 + 1)},
    ),
    Property("what_is_written_is_read", "every token is read back from its slot", _what_is_written_is_read),
)
