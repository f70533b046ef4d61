"""Experts of a mixture, from states to the sum of what they say: their cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import bounds_of, compare_runs
from npudiff.judge.relations import relation, tokens_do_not_mix
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box, Numbers
from npudiff.properties._shared import expert_weights, magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.expert_weights import Shape
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.int4_pack import INTEGERS_OF_A_WORD
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs, moe_experts
from npudiff.reference.swiglu import LAYOUTS, Activation
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("float", "w8a8", "w4a8")
ACTIVATIONS = tuple(activation.value for activation in Activation)
LIMITS = (7.0, 1.5, 16.0)
LOADS = ("random", "same", "repeated")
"""random: each token has experts of its own. same: all tokens have the same ones, the others none. repeated: every
third token names one expert at all its places, as padding names expert 0."""
HERE = ("all", "chosen", "local", "others")
"""Whose matrices there are. chosen: of those experts that any token has. local: of the second half of all, as a rank of
expert parallelism has them; the other copies are left out. others: of those that no token has, so that all copies are;
where each has a token, of the last."""
RECIPES = ("gaussian", "at limit", "zero rows", "outlier")
"""gaussian: gates and ups are about normal. at limit: about the limit times normal. zero rows: some rows hold nothing
but zeros. outlier: one element of each row is 64 times larger."""
GROUP_SIZE = 256

EXPERTS = (2, 1, 3, 4, 8, 16, 2, 4, 8, 16, 288)
MANY = 64
"""Experts whose matrices are not made for nothing."""

MOST_PRODUCTS = 2**22
"""Products with one matrix up to which a case may be larger than it must."""


def _hidden(case: MoeExpertsCase) -> Sequence[int]:
    return (GROUP_SIZE * case.groups,) if case.groups > 1 else (16, 8) if case.huge else (32, 16, 64, 96, 48)


def _affords_tokens(case: MoeExpertsCase, tokens: int) -> bool:
    if case.huge:
        return case.affords(tokens * case.top_k * max(case.hidden, case.width), 0)
    return tokens * case.hidden * case.width * case.top_k <= MOST_PRODUCTS


def _here(case: MoeExpertsCase) -> Sequence[str]:
    """Of many experts, only the matrices of those that are chosen are made; one expert has no halves."""
    if case.experts >= MANY:
        return ("chosen",)
    return (*HERE, "local") if case.experts > 1 else HERE[:2]


def _limit_text(case: MoeExpertsCase) -> str:
    limit = "" if case.limit is None else f" {case.limit:g}"
    return f"{case.activation}{limit}" if case.activation != "silu" or limit else ""


def _shared_text(case: MoeExpertsCase) -> str:
    limit = "" if case.shared_limit is None else f" {case.shared_limit:g}"
    return f"shared {case.shared_width}{limit}" if case.shared_width else ""


@dataclass(frozen=True)
class MoeExpertsCase(Case):
    """One call, as sizes, configuration and recipes."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 33, 70, 130),
        affordable=_affords_tokens,
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.hidden}",
    )  # fmt: skip
    hidden: int = axis("elements of a row", range(1, 2**14), 32, drawn=_hidden, shown="")
    width: int = axis(
        "gates of an expert, and as many ups",
        range(1, 2**14),
        32,
        drawn=lambda case: (8, 16) if case.huge else (32, 16, 64, 40, 96, 264),
        shown="",
    )
    experts: int = axis(
        "experts", range(1, 1025), 2, drawn=EXPERTS, fits=lambda case, experts: experts >= case.top_k,
        shown=lambda case: f"top {case.top_k} of {case.experts} x {case.width}",
    )  # fmt: skip
    top_k: int = axis(
        "experts of a token",
        range(1, 65),
        1,
        drawn=lambda case: (1, 2) if case.huge else (1, 2, 3, 4, 8),
        shown="",
    )
    form: str = axis(
        "what weights are; rows are int8 where these are integers", FORMS, "float", region=lambda case: case.form
    )
    dtype: str = axis("dtype of the states and the result", tuple(DTYPES), "bfloat16", always=True)
    groups: int = axis(
        "scales of each column of the first matrix", range(1, 65), 1,
        drawn=lambda case: (1, 1, 2, 3) if case.form == "w4a8" else (1,),
        shown="{} scales a column", region="several scales",
    )  # fmt: skip
    activation: str = axis(
        "what the configuration calls it", ACTIVATIONS, "silu", shown=_limit_text, region=lambda case: case.activation
    )
    limit: float | None = axis(
        "limit of routed experts", Numbers(1e-3, 1e4), None, optional=True, drawn=(None, *LIMITS), shown=""
    )
    layout: str = axis(
        "where gates and ups lie", LAYOUTS, "halves",
        drawn=lambda case: ("halves", "interleaved") if case.activation == "swiglu_oai" else ("halves",),
    )  # fmt: skip
    biased: bool = axis(
        "whether both products have a bias", (False, True), False,
        drawn=lambda case: (False, True) if case.form == "float" else (False,),
    )  # fmt: skip
    shared_width: int = axis(
        "width of the shared expert; 0 for none", range(2**14), 0,
        drawn=lambda case: (0, 0, case.width, 2 * case.width), shown=_shared_text, region="shared expert",
    )  # fmt: skip
    shared_limit: float | None = axis(
        "limit of the shared expert", Numbers(1e-3, 1e4), None, optional=True,
        drawn=lambda case: (None, *LIMITS) if case.shared_width else (None,),
        assumes=lambda case, limit: limit is None or case.shared_width > 0,
        applies=lambda case: case.shared_width > 0, shown="",
    )  # fmt: skip
    load: str = axis("which experts tokens have", LOADS, "random", shown="load {}")
    here: str = axis("whose matrices there are", HERE, "all", drawn=_here, shown="{} here")
    recipe: str = axis("how the states are made", RECIPES, "gaussian", region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("form", "activation", "groups", "hidden", "width", "top_k", "experts", "shared_width")
    outliers = ("experts", "top_k", "tokens", "width")
    huge_axes = ("tokens",)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        for name in _contradictions(self):
            yield f"{name} {getattr(self, name)} does not go with {self.describe()}"
        matrices = self.experts if self.here != "chosen" else min(self.experts, self.tokens * self.top_k)
        if 3 * matrices * self.hidden * self.width > 2**33:
            yield f"matrices would have more than {2**33} elements"
        if self.tokens * self.top_k * max(self.hidden, self.width) > 2**26:
            yield f"copies of tokens would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "limited": self.limit is not None and self.recipe == "at limit",
            "limits differ": self.shared_width > 0 and self.limit != self.shared_limit,
            "not all here": self.here in ("local", "others"),
            "more experts than copies": self.experts > self.tokens * self.top_k,
        }


def _contradictions(case: MoeExpertsCase) -> Iterator[str]:
    """What a case has that does not go with the rest of it."""
    sizes = (case.hidden, 2 * case.width, 2 * case.shared_width)
    checks = {
        "top_k": case.top_k > case.experts,
        "hidden": case.form == "w4a8" and any(size % INTEGERS_OF_A_WORD for size in sizes),
        "groups": case.groups > 1 and (case.form != "w4a8" or case.hidden != GROUP_SIZE * case.groups),
        "biased": case.biased and case.form != "float",
        "layout": case.layout == "interleaved" and case.activation != "swiglu_oai",
        "shared_limit": case.shared_limit is not None and not case.shared_width,
        "here": case.here in ("local", "others") and case.experts < 2,
    }
    yield from (name for name, holds in checks.items() if holds)


def build_inputs(case: MoeExpertsCase) -> MoeExpertsInputs:
    """Build the inputs of a case; matrices of an expert depend on its number and the seed alone."""
    topk_ids = _chosen(case)
    here = torch.arange(case.experts)
    if case.here == "chosen":
        here = torch.unique(topk_ids).long()
    if case.here == "local":
        here = here[case.experts // 2 :]
    if case.here == "others":
        others = here[~torch.isin(here, topk_ids)]
        here = others if len(others) else here[-1:]
    shared = None
    if case.shared_width:
        shared = _experts(case, "shared", torch.zeros(1, dtype=torch.int64), case.shared_width, case.shared_limit)
    spread = Stream(case.seed, "weights").normal((case.tokens, case.top_k), torch.float32)
    weights = (0.1 + spread.abs()) / case.top_k
    return MoeExpertsInputs(
        states=rows.with_row_stride(_states(case), case.rows),
        topk_ids=topk_ids,
        weights=weights.to(DTYPES[case.dtype]),
        here=here,
        routed=_experts(case, "routed", here, case.width, case.limit),
        shared=shared,
    )


def _chosen(case: MoeExpertsCase) -> torch.Tensor:
    stream = Stream(case.seed, "chosen")
    orders = stream.permutations(1 if case.load == "same" else case.tokens, case.experts)[:, : case.top_k]
    chosen = torch.from_numpy(orders).to(torch.int32).expand(case.tokens, case.top_k).contiguous()
    if case.load == "repeated":
        chosen[::3] = chosen[::3, :1]
    return chosen


def _experts(case: MoeExpertsCase, name: str, numbers: torch.Tensor, width: int, limit: float | None) -> Experts:
    dtype = DTYPES[case.dtype]
    up = Shape(numbers.tolist(), case.hidden, 2 * width, case.form, case.groups, dtype)
    down = Shape(numbers.tolist(), width, case.hidden, case.form, 1, dtype)
    gate = Gate(Activation(case.activation), limit, layout=case.layout)
    return Experts(_matrices(case, f"{name} up", up), _matrices(case, f"{name} down", down), gate)


def _matrices(case: MoeExpertsCase, name: str, shape: Shape) -> ExpertWeights:
    weights = expert_weights.build(shape, case.seed, name)
    if case.form == "w8a8" and weights.scale is not None and case.dtype == "bfloat16":
        weights = replace(weights, scale=weights.scale.to(torch.bfloat16))
    if not case.biased:
        return weights
    size = (len(shape.experts), shape.columns)
    bias = Stream(case.seed, f"{name} bias").normal(size, torch.float32) / 2
    return replace(weights, bias=bias.to(torch.float16 if case.dtype == "float16" else torch.float32))


def _states(case: MoeExpertsCase) -> torch.Tensor:
    stream = Stream(case.seed, "states")
    states = stream.normal((case.tokens, case.hidden), torch.float32)
    if case.recipe == "at limit":
        states *= case.limit or LIMITS[0]
    if case.recipe == "outlier":
        states[magnitudes.places_of_largest(stream, case.hidden, case.tokens)] *= 64
    if case.recipe == "zero rows":
        states[::2] = 0.0
    return states.to(DTYPES[case.dtype])


def coordinates(inputs: MoeExpertsInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: token, column, and how many of its copies are left out."""
    del output  # there is one
    tokens, hidden = inputs.states.shape
    src_to_dst_row = {"token": torch.arange(tokens).unsqueeze(1), "column": torch.arange(hidden).unsqueeze(0)}
    elsewhere = (~torch.isin(inputs.topk_ids, inputs.here)).sum(dim=1, keepdim=True)
    return src_to_dst_row | ({"experts elsewhere": elsewhere} if bool(elsewhere.any()) else {})


def _experts_in_another_order(inputs: MoeExpertsInputs, case: MoeExpertsCase) -> MoeExpertsInputs:
    """Experts change numbers, and their matrices places; nobody's answer changes."""
    order = torch.tensor(Stream(case.seed, "order").permutation(case.experts))
    numbers = torch.argsort(order)  # the new number of each expert
    here = numbers[inputs.here]
    src_to_dst_row = torch.argsort(here)
    return replace(
        inputs,
        topk_ids=numbers[inputs.topk_ids.long()].to(torch.int32),
        here=here[src_to_dst_row],
        routed=_taken(inputs.routed, src_to_dst_row),
    )


def _taken(experts: Experts, src_to_dst_row: torch.Tensor) -> Experts:
    return replace(
        experts, up=_matrices_at(experts.up, src_to_dst_row), down=_matrices_at(experts.down, src_to_dst_row)
    )


def _matrices_at(weights: ExpertWeights, src_to_dst_row: torch.Tensor) -> ExpertWeights:
    scale, bias = (None if part is None else part[src_to_dst_row] for part in (weights.scale, weights.bias))
    return ExpertWeights(weights.values[src_to_dst_row], weights.bits, scale, weights.offset, bias)


def _in_two_calls(subject: Subject, case: MoeExpertsCase) -> Comparison:
    """Tokens in two calls have what they have in one."""
    inputs = build_inputs(case)
    middle = case.tokens // 2
    parts = [subject.run(_some(inputs, part)) for part in (slice(middle), slice(middle, None))]
    other = {name: torch.cat([part[name] for part in parts]) for name in ("output",)}
    return compare_runs(bounds_of(subject.expected(inputs)), subject.run(inputs), other, "tokens in two calls")


def _some(inputs: MoeExpertsInputs, tokens: slice) -> MoeExpertsInputs:
    return replace(
        inputs, states=inputs.states[tokens], topk_ids=inputs.topk_ids[tokens], weights=inputs.weights[tokens]
    )


def _sizes(model: Model) -> Box | None:
    if not model.activation:
        return None
    return {
        "tokens": FEW,
        "hidden": (model.hidden,),
        "width": (model.width,),
        "experts": (model.experts,),
        "top_k": (model.top_k,),
        "groups": (1,),
        "activation": (model.activation,),
        "limit": model.limits,
        "layout": ("interleaved" if model.activation == "swiglu_oai" else "halves",),
        "shared_width": (model.shared_width,),
        "here": ("chosen",),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="moe_experts",
    summary="experts of a mixture in bfloat16, W8A8 and W4A8, from the states of tokens to the weighted sum",
    case_type=MoeExpertsCase,
    outputs=("output",),
    inputs=build_inputs,
    reference=moe_experts,
    coordinates=coordinates,
    highlighted_region="w4a8",
    relations=(
        tokens_do_not_mix("states", "topk_ids", "weights"),
        relation("experts_in_another_order", "experts change places with their matrices, and nothing else does",
                 _experts_in_another_order, within={"experts": range(2, 1025), "here": ("all", "local")}),
        Property("in_two_calls", "tokens in two calls have what they have in one", _in_two_calls,
                 within={"tokens": rows.SEVERAL}),
    ),
    example_ratio=0.4,
    profiles=of_experts(_sizes),
    baselines=BASELINES["moe_experts"],
)  # fmt: skip
