"""What must hold between calls of one implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.model.comparison import Comparison
from npudiff.model.component import Property, Subject
from npudiff.properties.mla_preprocess.case import MlaPreprocessCase, layout_of
from npudiff.properties.mla_preprocess.inputs import build_inputs
from npudiff.reference.mla_preprocess import MlaPreprocessInputs

Outputs = Mapping[str, torch.Tensor]
PER_TOKEN = ("hidden", "positions", "slots")


def _tokens_do_not_mix(subject: Subject, case: MlaPreprocessCase) -> Comparison:
    """Tokens in another order: each has the queries that it had, and the caches are the same."""
    inputs = build_inputs(case)
    order = Stream(case.seed, "order").permutation(case.tokens)
    moved = replace(inputs, **{name: getattr(inputs, name)[order] for name in PER_TOKEN})
    before = {
        name: output[order] if name.startswith("query") else output for name, output in subject.run(inputs).items()
    }
    return compare_runs(bounds_of(subject.expected(moved)), before, subject.run(moved), "tokens in another order")


def _a_token_alone(subject: Subject, case: MlaPreprocessCase) -> Comparison:
    """The first token without the others: the same queries, and the same at its slot."""
    inputs = build_inputs(case)
    subject.require(replace(case, tokens=1, padded_tokens=0, spare_pages=case.pages - 2), "one token alone")
    alone = replace(inputs, **{name: getattr(inputs, name)[:1] for name in PER_TOKEN})
    together, apart = (_of_first(case, inputs, subject.run(one)) for one in (inputs, alone))
    bounds = _of_first(case, inputs, bounds_of(subject.expected(alone)))
    return compare_runs(bounds, together, apart, "the first token alone against all")


def _of_first(case: MlaPreprocessCase, inputs: MlaPreprocessInputs, outputs: Outputs) -> Outputs:
    """What belongs to the first token: its queries, and its slots of the caches."""
    parts = {name: output[:1] for name, output in outputs.items() if name.startswith("query")}
    for name, dim in (("rope_cache", case.rope_dim), ("latent_cache", case.latent_dim)):
        if name in outputs:
            parts[name] = outputs[name].reshape(-1)[layout_of(case, dim).addresses(inputs.slots[:1])]
    return parts


RELATIONS = (
    Property(
        "tokens_do_not_mix",
        "the order of tokens does not matter",
        _tokens_do_not_mix,
        within={"tokens": range(2, 2**16 + 1), "padded_tokens": (0,)},
    ),
    Property(
        "a_token_alone",
        "a token's company does not matter",
        _a_token_alone,
        within={"tokens": range(2, 2**16 + 1), "padded_tokens": (0,)},
        needs={"tokens": (1,)},
    ),
)
