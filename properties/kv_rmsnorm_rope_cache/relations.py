"""What must hold between calls of one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.judge.compare import bounds_of, compare_runs, same_bits
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties.kv_rmsnorm_rope_cache.case import KvRmsnormRopeCacheCase, layout_of
from npudiff.properties.kv_rmsnorm_rope_cache.inputs import build_inputs
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs


def _a_request_alone(subject: Subject, case: KvRmsnormRopeCacheCase) -> Comparison:
    """The first request without the others: the same bits at its slots, and as outputs."""
    inputs = build_inputs(case)
    subject.require(replace(case, batch=1, spare_pages=case.pages - 1 - case.pages_per_request), "one request alone")
    alone = replace(inputs, **{name: getattr(inputs, name)[:1] for name in ("kv", "positions", "slots")})
    together, apart = (_of_first(case, inputs, subject.run(one)) for one in (inputs, alone))
    bounds = _of_first(case, inputs, bounds_of(subject.expected(alone)))
    return compare_runs(bounds, together, apart, "the first request alone against the batch")


def _of_first(
    case: KvRmsnormRopeCacheCase, inputs: KvRmsnormRopeCacheInputs, outputs: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """What belongs to the first request: its outputs, and its slots of the caches."""
    parts = {name: outputs[name][:1] for name in ("rope", "latent") if name in outputs}
    for name, dim in (("rope_cache", case.rope_dim), ("latent_cache", case.latent_dim)):
        parts[name] = outputs[name].reshape(-1)[layout_of(case, dim).addresses(inputs.slots[0])]
    return parts


def _rewrite_is_idempotent(subject: Subject, case: KvRmsnormRopeCacheCase) -> Comparison:
    inputs = build_inputs(case)
    once = subject.run(inputs)
    again = subject.run(replace(inputs, latent_cache=once["latent_cache"], rope_cache=once["rope_cache"]))
    return same_bits(_without_dummy(case, once), _without_dummy(case, again), "written once against twice")


def _order_does_not_matter(subject: Subject, case: KvRmsnormRopeCacheCase) -> Comparison:
    """Requests in reverse: the caches are the same."""
    inputs = build_inputs(case)
    one = subject.run(inputs)
    swapped = {name: getattr(inputs, name).flip(0) for name in ("kv", "positions", "slots")}
    reverse = replace(inputs, **swapped)
    bounds = _without_dummy(case, bounds_of(subject.expected(reverse)))
    return compare_runs(
        bounds, _without_dummy(case, one), _without_dummy(case, subject.run(reverse)), "requests in reverse"
    )


def _without_dummy(case: KvRmsnormRopeCacheCase, outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The caches without page 0, where it is a dummy; pages are the first axis of every layout."""
    first = 0 if case.placement == "rows" else 1
    return {name: outputs[name][first:] for name in ("rope_cache", "latent_cache")}


RELATIONS = (
    Property(
        "a_request_alone",
        "a request's company does not matter",
        _a_request_alone,
        within={"batch": range(2, 2**16 + 1), "padded_tokens": (0,), "placement": ("scattered", "pages")},
        needs={"batch": (1,)},
    ),
    Property("rewrite_is_idempotent", "writing the same again changes nothing", _rewrite_is_idempotent),
    Property(
        "order_does_not_matter",
        "the order of requests does not matter",
        _order_does_not_matter,
        within={"batch": range(2, 2**16 + 1), "padded_tokens": (0,), "placement": ("scattered", "pages")},
    ),
)
