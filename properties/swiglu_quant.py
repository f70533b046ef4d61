"""The activation between the two products of quantised experts: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.judge.relations import Changed, relation, rows_reordered, rows_taken
from npudiff.model.component import Component, NotApplicable
from npudiff.model.constraints import Box, Numbers
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import magnitudes, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.loads import equal_groups
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.properties._shared.rows import with_row_stride
from npudiff.reference.swiglu import ROUNDINGS, Activation
from npudiff.reference.swiglu_quant import GATES, SwigluQuantInputs, swiglu_quant
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SUMS = ("none", "small", "beyond 2**24")
"""none: the states are numbers of the dtype. small: int32 sums of some thousands. beyond 2**24: sums that float32 does
not hold, up to the end of int32."""
ACTIVATIONS = tuple(one.value for one in Activation if one is not Activation.GELU_TANH)
"""No operator between the products of quantised experts has a GELU."""
LIMITS = (7.0, 10.0, 1.5, 7.1, 0.5)
ALPHAS = (1.702, 1.0, 0.5)
BIASES = (1.0, 0.0, 0.5)
LOADS = ("any", "one gets all", "first gets none", "equal", "equal but two")
"""any: rows go to any groups. one gets all: the last group has all rows. first gets none: the others have them. equal:
all have as many, where rows can be divided so, and the last has the rest. equal but two: the third has one row of the
second."""
RECIPES = ("gaussian", "at limit", "beyond", "zero rows", "outlier", "large")
"""gaussian: within the limit. at limit: gates and ups around the limit, of both signs. beyond: three times the limit.
zero rows: some rows hold nothing but zeros. outlier: one up of a row is 64 times larger. large: products
beyond float16, of bfloat16 and without a limit."""

MOST_ELEMENTS = 2**17
"""Elements of the states up to which a case may have more rows than it must."""

GROUPED = {"groups": range(1, 1024)}


def _groups(case: SwigluQuantCase) -> Sequence[int | None]:
    """Numbers of groups; some into which the rows can be divided."""
    return (None, 1, 2, 3, 9, 40, 130, *(count for count in (3, 4, 5, 10, 13) if case.tokens % count == 0))


def _is_oai(case: SwigluQuantCase) -> bool:
    return case.activation == "swiglu_oai"


def _is_grouped(case: SwigluQuantCase) -> bool:
    return case.groups is not None


@dataclass(frozen=True)
class SwigluQuantCase(Case):
    """One call, as sizes, configuration and recipes."""

    tokens: int = axis(
        "rows that belong to a group", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 130, 300),
        affordable=lambda case, tokens: case.affords(2 * tokens * case.width, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} x {case.width}",
    )  # fmt: skip
    width: int = axis(
        "gates of a row, and as many ups", range(1, 2**16 + 1), 64,
        drawn=(64, 128, 1, 2, 16, 17, 33, 80, 200, 320, 1280, 2112), shown="",
        region=lambda case: "odd width" if case.width % 2 else "",
    )  # fmt: skip
    sums: str = axis(
        "whether the states are sums of int8 products, and how large", SUMS, "none",
        fits=lambda case, sums: not case.bias or sums != "none", region="sums",
        shown=lambda case: {"none": "", "small": "small sums"}.get(case.sums, f"sums {case.sums}"),
    )  # fmt: skip
    dtype: str = axis("dtype of the model", tuple(DTYPES), "bfloat16", always=True)
    bias: bool = axis(
        "whether something is added to the sums", (False, True), False, drawn=(False, False, False, True), region="bias"
    )
    smooth: bool = axis("whether there are factors before quantisation", (False, True), False, region="smooth")
    groups: int | None = axis(
        "groups of rows with scales of their own; none for a call without counts", range(1, 1025), None, optional=True,
        drawn=_groups, fits=lambda case, groups: groups is None or not case.bias,
        shown="{} group(s)", region=lambda case: "several groups" if (case.groups or 1) > 1 else "",
    )  # fmt: skip
    load: str = axis("how rows are spread over groups", LOADS, "any", applies=_is_grouped, region="{}")
    spare_rows: int = axis(
        "rows behind those of all groups", range(2**16), 0,
        drawn=lambda case: (0,) if case.groups is None else (0, 0, 1, 5), applies=_is_grouped,
        shown="{} spare row(s)", region="rows to spare",
    )  # fmt: skip
    activation: str = axis(
        "what the configuration calls it", ACTIVATIONS, "silu", always=True, region=lambda case: case.activation
    )
    limit: float = axis(
        "limit of swiglustep and swiglu_oai", Numbers(1e-3, 1e4), 7.0, drawn=LIMITS,
        applies=lambda case: case.limited, shown="limit {:g}", always=True,
    )  # fmt: skip
    alpha: float = axis(
        "factor in the sigmoid of swiglu_oai", Numbers(-100, 100), 1.702, drawn=ALPHAS, applies=_is_oai,
        shown="alpha {:g}", always=True,
    )  # fmt: skip
    glu_bias: float = axis(
        "what swiglu_oai adds to the up", Numbers(-100, 100), 1.0, drawn=BIASES, applies=_is_oai, shown="plus {:g}"
    )
    gates: str = axis("which columns are gates", GATES, "left", shown="{} gates", region="{} gates")
    recipe: str = axis(
        "how gates and ups are made", RECIPES, "gaussian",
        fits=lambda case, recipe: recipe != "large" or (case.dtype == "bfloat16" and case.sums == "none"), region="{}",
    )  # fmt: skip
    rounding: str = axis(
        "whether a device may round between operations, or once at the end only", ROUNDINGS, "stages",
        drawn=("stages",),  # the stricter bound is for those who ask for it
        shown="one rounding",
    )  # fmt: skip
    rows: str = rows.axis(several="tokens")
    seed: int = seed()

    drawn_first = ("width", "bias", "tokens", "groups", "sums", "dtype", "smooth")
    shown_first = (
        "tokens", "sums", "groups", "load", "spare_rows", "bias", "activation", "limit", "alpha", "glu_bias", "gates",
        "smooth",
    )  # fmt: skip
    outliers = ("groups", "tokens", "width")
    huge_axes = ("tokens", "width")

    @property
    def limited(self) -> bool:
        """Whether the activation has a limit."""
        return self.activation != "silu"

    @property
    def all_rows(self) -> int:
        """Rows of the states."""
        return self.tokens + self.spare_rows

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.spare_rows and self.groups is None:
            yield "spare_rows without groups"
        if self.bias and (self.sums == "none" or self.groups is not None):
            yield "a bias needs sums, and a call without groups"
        if 2 * max(self.all_rows, self.groups or 1) * self.width > 2**26:
            yield f"the states would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "sums beyond 2**24": self.sums == "beyond 2**24",
            "at the limit": self.limited and self.recipe in ("at limit", "beyond"),
        }


COLUMN_STEPS = {"small": 2.0**-8, "beyond 2**24": 2.0**-16}
"""What a sum is worth by its column, as a mean."""

TOKEN_STEPS = {"small": 2.0**-4, "beyond 2**24": 2.0**-10}
"""What it is worth by its row: together 2**12 or 2**26 sums in a number of 1."""

MOST = 2**31 - 2**28
"""The largest sum of a case: with any bias it fits into 32 bits."""


def build_inputs(case: SwigluQuantCase) -> SwigluQuantInputs:
    """Build the inputs of a case. Rows that are nobody's hold NaN, or the largest sum and a scale of NaN."""
    numbers = _numbers(case)
    counts = counts_of(case)
    column, token, bias = _scales(case, counts)
    states = numbers.to(DTYPES[case.dtype])
    if column is not None and token is not None:
        group = torch.arange(len(column)).repeat_interleave(counts if counts is not None else len(states))
        group = torch.cat([group, group.new_zeros(case.spare_rows)])
        sums = numbers.to(torch.float64) / (column[group].to(torch.float64) * token.to(torch.float64).unsqueeze(1))
        states = sums.round().clamp(-MOST, MOST).to(torch.int32)
        token[case.tokens :] = torch.nan
    states[case.tokens :] = 2**31 - 1 if column is not None else torch.nan
    smooth = None
    if case.smooth:
        spread = Stream(case.seed, "smooth").normal((case.groups or 1, case.width), torch.float32)
        smooth = 1 + 0.25 * spread
    return SwigluQuantInputs(
        states=with_row_stride(states, case.rows),
        weight_scale=column,
        token_scale=token,
        bias=bias,
        smooth=smooth,
        counts=counts,
        activation=Activation(case.activation),
        limit=case.limit if case.limited else None,
        alpha=case.alpha,
        glu_bias=case.glu_bias,
        gates=case.gates,
        dtype=DTYPES[case.dtype],
        rounding=case.rounding,
    )


def _numbers(case: SwigluQuantCase) -> torch.Tensor:
    """Gates and ups where the case has them, float32 ``[rows, 2 * width]``."""
    gate, up = _part(case, "gate"), _part(case, "up")
    if case.recipe == "outlier":
        places = magnitudes.places_of_largest(Stream(case.seed, "outlier"), case.width, case.all_rows)
        up[places] *= 64
    if case.gates == "even":
        return torch.stack([gate, up], dim=-1).flatten(1)
    return torch.cat([gate, up] if case.gates == "left" else [up, gate], dim=1)


def _part(case: SwigluQuantCase, name: str) -> torch.Tensor:
    """Gates or ups, ``[rows, width]``; around the limit that applies, or where a common default lies."""
    stream, shape = Stream(case.seed, name), (case.all_rows, case.width)
    limit = case.limit if case.limited else 7.0
    if case.recipe == "at limit":
        near = torch.tensor([limit * sign * step for sign in (1, -1) for step in (1.0, 0.99, 1.01, 1.3)])
        picked = torch.from_numpy(stream.random_uint64(case.all_rows * case.width).astype("int64") % len(near))
        return near[picked].reshape(shape)
    numbers = stream.normal(shape, torch.float32) * {"beyond": 3 * limit, "large": 1000.0}.get(
        case.recipe, min(2.0, limit / 4)
    )
    if case.recipe == "zero rows":
        numbers[::2] = 0.0
    return numbers


def _scales(
    case: SwigluQuantCase, counts: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """What a sum is worth by column and by row, and what is added to it, about half a number of 1."""
    if case.sums == "none":
        return None, None, None
    steps = {"weight scale": COLUMN_STEPS[case.sums], "token scale": TOKEN_STEPS[case.sums]}
    shapes = {"weight scale": (1 if counts is None else len(counts), 2 * case.width), "token scale": (case.all_rows,)}
    column, token = (
        (1 + 0.25 * Stream(case.seed, name).normal(shapes[name], torch.float32)) * step for name, step in steps.items()
    )
    if not case.bias:
        return column, token, None
    added = Stream(case.seed, "bias").normal((2 * case.width,), torch.float32)
    return column, token, (added * (0.5 / (steps["weight scale"] * steps["token scale"]))).round().to(torch.int32)


def counts_of(case: SwigluQuantCase) -> torch.Tensor | None:
    """Rows of each group, int64 ``[groups]``."""
    if case.groups is None:
        return None
    if case.load == "one gets all":
        groups = [case.groups - 1] * case.tokens
    elif case.load.startswith("equal"):
        counts = equal_groups(case.tokens, case.groups, but_two=case.load == "equal but two")
        counts[-1] += case.tokens - counts.sum()
        return counts
    else:
        first = 1 if case.load == "first gets none" and case.groups > 1 else 0
        groups = Stream(case.seed, "groups").integers(first, case.groups, case.tokens)
    return torch.bincount(torch.tensor(groups), minlength=case.groups)


def coordinates(inputs: SwigluQuantInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, group and column."""
    token = torch.arange(len(inputs.states))
    places = {"token": token}
    if inputs.counts is not None:
        group = torch.bucketize(token, inputs.counts.cumsum(0), right=True)
        places["group"] = torch.where(group < len(inputs.counts), group, NOWHERE)
    if output == "scale":
        return places
    columns = {"column": torch.arange(inputs.width).unsqueeze(0)}
    return {name: place.unsqueeze(1) for name, place in places.items()} | columns


def _in_another_order(inputs: SwigluQuantInputs, case: SwigluQuantCase) -> Changed[SwigluQuantInputs]:
    """Rows of a group change places among themselves; those that are nobody's stay."""
    ends = [case.tokens] if inputs.counts is None else inputs.counts.cumsum(0).tolist()
    order: list[int] = []
    for end in ends:
        start = len(order)
        order += [start + place for place in Stream(case.seed, f"order {start}").permutation(end - start)]
    order += range(case.tokens, case.all_rows)
    return rows_reordered(inputs, order, "states", "token_scale")


def _twice_the_ups(inputs: SwigluQuantInputs, case: SwigluQuantCase) -> Changed[SwigluQuantInputs]:
    """Without a limit the result is proportional to the ups, and doubling is exact."""
    del case
    return Changed(_with_ups_doubled(inputs), lambda outputs: {**outputs, "scale": 2 * outputs["scale"]})


def _with_ups_doubled(inputs: SwigluQuantInputs) -> SwigluQuantInputs:
    is_up = torch.zeros(2 * inputs.width, dtype=torch.bool)
    ups = {"left": slice(inputs.width, None), "right": slice(inputs.width), "even": slice(1, None, 2)}
    is_up[ups[inputs.gates]] = True
    if inputs.weight_scale is None:
        return replace(inputs, states=torch.where(is_up, 2 * inputs.states, inputs.states))
    return replace(inputs, weight_scale=torch.where(is_up, 2 * inputs.weight_scale, inputs.weight_scale))


def _rows_to_spare(inputs: SwigluQuantInputs, case: SwigluQuantCase) -> Changed[SwigluQuantInputs]:
    """Rows behind those of all groups, copies of the first one, are nobody's business."""
    tokens = inputs.token_scale
    more = replace(
        inputs,
        states=torch.cat([inputs.states, inputs.states[:1].expand(3, -1)]),
        token_scale=None if tokens is None else torch.cat([tokens, tokens[:1].expand(3)]),
    )
    return Changed(more, part=rows_taken(slice(case.all_rows)))


def _a_group_in_two(inputs: SwigluQuantInputs, case: SwigluQuantCase) -> SwigluQuantInputs:
    """The largest group as two that have its scales."""
    del case
    if inputs.counts is None:
        raise NotApplicable("there are no groups")
    largest = int(inputs.counts.argmax())
    groups = torch.arange(len(inputs.counts))
    twice = torch.cat([groups[: largest + 1], groups[largest:]])
    counts = inputs.counts[twice]
    counts[largest] = inputs.counts[largest] // 2
    counts[largest + 1] -= counts[largest]
    column, smooth = (scale if scale is None else scale[twice] for scale in (inputs.weight_scale, inputs.smooth))
    return replace(inputs, counts=counts, weight_scale=column, smooth=smooth)


def _sizes(model: Model) -> Box | None:
    if model.activation not in ACTIVATIONS:
        return None
    return {
        "tokens": FEW,
        "width": (model.width,),
        "activation": ("silu", "swiglustep") if model.limit and model.activation == "silu" else (model.activation,),
        "limit": (model.limit or 7.0,),
        "gates": ("even",) if model.activation == "swiglu_oai" else ("left",),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="swiglu_quant",
    summary="the gated activation of quantised experts: from int32 sums to int8 rows with a scale for each",
    case_type=SwigluQuantCase,
    outputs=("quantised", "scale"),
    inputs=build_inputs,
    reference=swiglu_quant,
    illegal=(
        wrong_element("a negative count", "counts", constant(-1)),
        wrong_element("groups with more rows than there are", "counts", lambda inputs: len(inputs.states) + 1),
    ),
    coordinates=coordinates,
    highlighted_region="sums",
    relations=(
        relation("tokens_do_not_mix", "the order of the tokens of a group does not matter", _in_another_order,
                 within={"tokens": rows.SEVERAL}),
        relation("twice_the_ups", "ups twice as large have scales twice as large, and the same integers",
                 _twice_the_ups, within={"activation": ("silu",)}),
        relation("rows_to_spare", "rows behind those of all groups change nothing", _rows_to_spare, within=GROUPED),
        relation("a_group_in_two", "a group as two with the same scales gives the same", _a_group_in_two,
                 within=GROUPED),
    ),
    example_ratio=0.7,
    profiles=of_experts(_sizes),
    baselines=BASELINES["swiglu_quant"],
)  # fmt: skip
