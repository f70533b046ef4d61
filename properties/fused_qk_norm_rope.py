"""Split, norm and rotation of a projection in one: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, derived, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.relations import Changed, Outputs, relation, tokens_do_not_mix
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.head_groups import asked_heads, groups, has_groups
from npudiff.properties._shared.models import FEW, Model, of_models
from npudiff.properties._shared.rows import with_row_stride
from npudiff.reference.fused_qk_norm_rope import ROUNDINGS, FusedQkNormRopeInputs, fused_qk_norm_rope
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("plain", "gemma")
STYLES = ("half", "interleaved")
NORMS = ("weight", "weight and bias", "none")

POSITIONS = ("scattered", "consecutive", "same", "last")
"""Rows of the table that tokens have: any, one after the other, one for all, or the last one."""

RECIPES = ("gaussian", "tiny", "large", "zero heads")
"""tiny: around the root of epsilon, where it counts. large: a hundred, with squares beyond float16. zero heads: one
head in three is zero."""

MOST_ELEMENTS = 2**18

_DIMS = range(2, 2**12 + 1)


def _affords(case: FusedQkNormRopeCase, tokens: int) -> bool:
    return case.affords(tokens * (2 * case.heads + 2 * case.kv_heads) * case.head_dim, MOST_ELEMENTS)


@dataclass(frozen=True)
class FusedQkNormRopeCase(Case):
    """One call, as sizes and recipes."""

    tokens: int = axis(
        "tokens", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 33, 130, 257), affordable=_affords,
        shown=lambda case: f"{counted(case.tokens, 'token')} · heads {case.heads}:{case.kv_heads} x {case.head_dim}",
    )  # fmt: skip
    kv_heads: int = axis("KV heads", range(1, 2**10), 1, drawn=lambda case: (1,) if case.huge else (1, 2, 3, 4, 8),
                         fits=has_groups, shown="", region="several KV heads")  # fmt: skip
    group: int = axis("query heads per KV head", range(1, 2**8), 1,
                      drawn=lambda case: groups(case, case.kv_heads, (1, 2) if case.huge else (1, 2, 3, 4, 8, 12)),
                      fits=lambda case, group: group * case.kv_heads in asked_heads(case), shown="")  # fmt: skip
    head_dim: int = axis(
        "elements of a head", _DIMS, 64,
        drawn=lambda case: (16, 32) if case.huge else (64, 128, 256, 32, 96, 192, 80), shown="",
    )  # fmt: skip
    rotary_dim: int = axis(
        "elements of a head that are rotated", range(2, 2**12 + 1, 2), 64,
        drawn=lambda case: (*[case.head_dim // 2 * 2] * 2, *(dim for dim in (64, 32, 16, 96) if dim < case.head_dim)),
        fits=lambda case, dim: dim <= case.head_dim,
        shown=lambda case: f"{case.rotary_dim} rotated" * (case.rotary_dim != case.head_dim),
        region=lambda case: "partly rotated" if case.rotary_dim < case.head_dim else "",
    )  # fmt: skip
    norm: str = axis("what is done with a normalised head", NORMS, "weight", shown="norm: {}", region="norm: {}")
    kind: str = axis("whether 1 is added to weights", KINDS, "plain", applies=lambda case: case.norm != "none",
                     shown="{} norm", region="{}")  # fmt: skip
    style: str = axis("which elements are pairs", STYLES, "half", shown="{}", region="{}")
    gated: bool = axis("whether queries have gates beside them", (False, True), False, drawn=(False, False, True),
                       shown="gated", region="gated")  # fmt: skip
    rounding: str = axis("whether a device may round between norm and rotation", ROUNDINGS, "once",
                         drawn=ROUNDINGS[:1], shown="rounded in stages")  # fmt: skip
    dtype: str = axis("dtype of everything", tuple(DTYPES), "bfloat16", always=True)
    epsilon: float = axis("added to the mean of squares", (1e-6, 1e-5), 1e-6, drawn=(1e-6, 1e-5), shown="epsilon {:g}")
    positions: str = axis("which rows of the table", POSITIONS, "scattered", shown="{} positions")
    table: int = axis("rows of the table", range(1, 2**20 + 1), 64, drawn=(64, 1, 5, 4097), shown="table {}")
    recipe: str = axis("how numbers are made", RECIPES, "gaussian", region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("kv_heads", "group", "head_dim", "rotary_dim")
    outliers = ("tokens", "kv_heads", "group", "head_dim")
    huge_axes = ("tokens",)
    tied = ("kv_heads", "group", "tokens")

    @derived("query heads", range(1, 2**18))
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def columns(self) -> int:
        """Columns of the projection."""
        return (self.heads * (2 if self.gated else 1) + 2 * self.kv_heads) * self.head_dim

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.rotary_dim > self.head_dim:
            yield f"a head has {self.head_dim} elements, of which {self.rotary_dim} cannot be rotated"
        if max(self.tokens * self.columns, self.table * self.rotary_dim) > 2**27:
            yield f"a tensor would have more than {2**27} elements"


def build_inputs(case: FusedQkNormRopeCase) -> FusedQkNormRopeInputs:
    """Build the inputs of a case."""
    dtype = DTYPES[case.dtype]

    def numbers(name: str, *shape: int) -> torch.Tensor:
        return Stream(case.seed, name).normal(shape, torch.float32)

    size = {"tiny": case.epsilon**0.5, "large": 100.0}.get(case.recipe, 1.0)
    qkv = numbers("qkv", case.tokens, case.columns) * size
    if case.recipe == "zero heads":
        qkv.view(case.tokens, -1, case.head_dim)[:, ::3] = 0.0
    normed, biased = case.norm != "none", case.norm == "weight and bias"
    center = 0.0 if case.kind == "gemma" else 1.0
    weights = {name: (center + 0.3 * numbers(name, case.head_dim)).to(dtype) for name in ("query", "key")}
    biases = {name: numbers(f"{name} bias", case.head_dim).to(dtype) for name in ("query", "key")}
    angle = numbers("angles", case.table, case.rotary_dim // 2) * 3
    return FusedQkNormRopeInputs(
        qkv=with_row_stride(qkv.to(dtype), case.rows),
        query_weight=weights["query"] if normed else None,
        key_weight=weights["key"] if normed else None,
        query_bias=biases["query"] if biased else None,
        key_bias=biases["key"] if biased else None,
        cos_sin_cache=torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype),
        positions=_positions(case),
        heads=case.heads,
        kv_heads=case.kv_heads,
        head_dim=case.head_dim,
        epsilon=case.epsilon,
        kind=case.kind,
        style=case.style,
        gated=case.gated,
        rounding=case.rounding,
    )


def _positions(case: FusedQkNormRopeCase) -> torch.Tensor:
    any_of = torch.tensor(Stream(case.seed, "positions").integers(0, case.table, case.tokens))
    following = torch.arange(case.tokens) % case.table
    same = torch.full((case.tokens,), int(any_of[0]))
    return {"scattered": any_of, "consecutive": following, "same": same}.get(
        case.positions, torch.full((case.tokens,), case.table - 1)
    )


def coordinates(inputs: FusedQkNormRopeInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output."""
    heads = inputs.heads if output == "query" or (output == "gate" and inputs.gated) else inputs.kv_heads
    heads = 0 if output == "gate" and not inputs.gated else heads
    return {
        "token": torch.arange(len(inputs.qkv))[:, None, None],
        "head": torch.arange(heads)[None, :, None],
        "element": torch.arange(inputs.head_dim)[None, None, :],
    }


def _heads_turned(inputs: FusedQkNormRopeInputs, case: FusedQkNormRopeCase) -> Changed[FusedQkNormRopeInputs]:
    """KV heads, and their query heads, in another order."""
    order = torch.tensor(Stream(case.seed, "heads").permutation(case.kv_heads))
    of_queries = (order[:, None] * case.group + torch.arange(case.group)).flatten()
    keys = case.kv_heads * case.head_dim
    query, key, value = torch.split(inputs.qkv, [inputs.query_columns, keys, keys], dim=1)
    query = query.reshape(case.tokens, case.heads, -1)[:, of_queries].flatten(1)
    key, value = (one.reshape(case.tokens, case.kv_heads, -1)[:, order].flatten(1) for one in (key, value))

    def moved(outputs: Outputs) -> Outputs:
        places = {"query": of_queries, "gate": of_queries if case.gated else order[:0]}
        return {name: one[:, places.get(name, order)] for name, one in outputs.items()}

    return Changed(replace(inputs, qkv=torch.cat([query, key, value], dim=1)), moved)


def _lengths_stay(subject: Subject, case: FusedQkNormRopeCase) -> Comparison:
    """With weights of 1, all of it rotated, a head has the length that its norm gives it: the root of its elements."""
    inputs = build_inputs(case)
    one = torch.full((case.head_dim,), 0.0 if case.kind == "gemma" else 1.0, dtype=inputs.qkv.dtype)
    plain = replace(inputs, query_weight=one, key_weight=one)
    outputs, expected = subject.run(plain), subject.expected(plain)
    right, lengths = {}, {}
    for name in ("query", "key"):
        wide = outputs[name].to(torch.float64)
        lengths[name] = wide.square().sum(dim=-1)
        value = expected[name].value.square().sum(dim=-1)
        off = (2 * wide.abs() * expected[name].bound + expected[name].bound.square()).sum(dim=-1)
        right[name] = Derived(value, off)
    return compare(right, lengths, "squares of the lengths of heads")


def _sizes(model: Model) -> Box | None:
    if model.latent or not model.layers:
        return None
    layer, dim = model.layers[0], model.layers[0].head_dim
    if not dim.isdigit() or not model.ropes:
        return None
    rotary = tuple({rope.rotary for rope in model.ropes if rope.head_dim == int(dim)})
    return {"tokens": FEW, "kv_heads": (layer.kv_heads,), "group": (layer.group,), "head_dim": (int(dim),),
            "rotary_dim": rotary or (int(dim),), "kind": (model.norm,)}  # fmt: skip


component = Component(
    name="fused_qk_norm_rope",
    summary="queries, keys and values cut out of one projection, the first two normalised by head and rotated",
    case_type=FusedQkNormRopeCase,
    outputs=("query", "key", "value", "gate"),
    inputs=build_inputs,
    reference=fused_qk_norm_rope,
    illegal=(
        wrong_element("a position beyond the table", "positions", lambda inputs: len(inputs.cos_sin_cache)),
        wrong_element("a negative position", "positions", constant(-1)),
    ),
    coordinates=coordinates,
    highlighted_region="partly rotated",
    relations=(
        tokens_do_not_mix("qkv", "positions"),
        relation("heads_do_not_mix", "the order of heads does not matter", _heads_turned,
                 within={"kv_heads": range(2, 2**10)}),
        Property("lengths_stay", "a rotated head is as long as its norm makes it", _lengths_stay,
                 within={"norm": ("weight",), "recipe": ("gaussian",)}),
    ),
    profiles=of_models(_sizes),
    baselines=BASELINES["fused_qk_norm_rope"],
)  # fmt: skip
