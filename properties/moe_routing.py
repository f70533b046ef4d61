"""Sorting tokens by expert: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.compare import Derived, compare
from npudiff.judge.pattern import NOWHERE as NO_COORDINATE
from npudiff.judge.relations import Changed, relation
from npudiff.model.component import Comparison, Component, Property, Subject
from npudiff.model.constraints import Box
from npudiff.model.illegal import wrong_element
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.models import FEW, Model, of_experts
from npudiff.properties._shared.moved_data import random_bits
from npudiff.reference.moe_routing import FORMS, NOWHERE, MoeRoutingInputs, moe_routing
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
LOADS = ("even", "one gets all", "first gets none", "few")
"""even: any experts. one gets all: every token goes to one expert, and to any others. first gets none: no token goes to
the first expert that is here. few: only as many experts as a token has, and one more."""
PADDED_IDS = ("none", "-1", "beyond")
"""none: every token has experts. -1, beyond: every third one is padding, and has that number, or the number of experts,
in all places."""
EXPERTS = (4, 8, 16, 64, 128, 256, 288)

MOST_ELEMENTS = 2**18
"""Elements of all copies up to which a case may have more tokens than it must."""


@dataclass(frozen=True)
class MoeRoutingCase(Case):
    """One call, as sizes and a way to spread tokens."""

    tokens: int = axis(
        "rows", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65, 257, 1025),
        affordable=lambda case, tokens: case.affords(tokens * case.top_k * case.width, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.tokens, 'token')} to {case.top_k} of {case.experts}",
    )  # fmt: skip
    experts: int = axis(
        "experts of the model", range(1, 2049), 4, drawn=lambda case: EXPERTS[2:] if case.far == "top_k" else EXPERTS,
        shown="",
    )  # fmt: skip
    top_k: int = axis(
        "experts of a token", range(1, 513), 1, drawn=(1, 2, 3, 4, 6, 8),
        fits=lambda case, top_k: top_k <= case.experts, shown="", region="several experts",
        was="chosen",
    )  # fmt: skip
    width: int = axis(
        "elements of a row", range(1, 2**16 + 1), 64, drawn=(1, 16, 32, 64, 80, 1000), shown="width {}", always=True
    )
    dtype: str = axis("dtype of the states", tuple(DTYPES), "bfloat16", always=True)
    form: str = axis("what copies become", FORMS, "as they are", drawn=(FORMS[0], *FORMS), region="{}")
    local: bool = axis(
        "whether only some of the experts are here", (False, True), False, drawn=(False, False, True),
        shown=lambda case: f"{case.here.start} to {case.here.stop - 1} here" * case.local, region="experts elsewhere",
    )  # fmt: skip
    load: str = axis("how tokens are spread over experts", LOADS, "even", region="{}")
    rows: str = rows.axis(several="tokens")
    seed: int = seed()
    padded_ids: str = axis(
        "what padded tokens have for experts, if there are any: -1, or one beyond all", PADDED_IDS, "none",
        drawn=(*PADDED_IDS[:1] * 6, *PADDED_IDS[1:]), shown="padding has {}", region="padding has no expert",
    )  # fmt: skip

    drawn_first = ("experts", "top_k", "width", "tokens")
    shown_first = ("tokens", "local", "load")
    outliers = ("top_k", "experts", "tokens", "width")
    huge_axes = ("tokens", "width")

    @property
    def here(self) -> range:
        """Experts that are here: all, or from a quarter on half of them, an eighth or one."""
        if not self.local:
            return range(self.experts)
        first = self.experts // 4
        return range(first, first + -(-self.experts // (2, 8, self.experts)[self.seed % 3]))

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.top_k > self.experts:
            yield f"{self.top_k} experts cannot be chosen of {self.experts}"
        if self.tokens * max(self.top_k * self.width, self.experts) > 2**26:
            yield f"there would be more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "one token": self.tokens == 1,
            "fewer copies than experts": self.tokens * self.top_k < self.experts,
        }


def build_inputs(case: MoeRoutingCase) -> MoeRoutingInputs:
    """Build the inputs of a case."""
    return MoeRoutingInputs(
        states=rows.with_row_stride(_states(case), case.rows),
        experts=_experts(case),
        all_experts=case.experts,
        first=case.here.start,
        last=case.here.stop,
        form=case.form,
        scale=_scale(case),
        offset=torch.tensor([3.25]) if case.form == "one scale" else None,
    )


def _scale(case: MoeRoutingCase) -> torch.Tensor | None:
    """Scales of tokens, factors about 1 of elements, or one scale: that leaves integers within int8, or does not."""
    stream = Stream(case.seed, "scale")
    if case.form == "with scales":
        return stream.normal((case.tokens,), torch.float32)
    if case.form == "smoothed":
        rows = 1 if case.seed % 4 == 3 else len(case.here)
        return 1 + stream.normal((rows, case.width), torch.float32).abs()
    return torch.tensor([30.4 if case.seed % 2 == 0 else 121.6]) if case.form == "one scale" else None


def _states(case: MoeRoutingCase) -> torch.Tensor:
    stream, shape = Stream(case.seed, "states"), (case.tokens, case.width)
    return (
        random_bits(stream, shape, DTYPES[case.dtype])
        if case.form in ("as they are", "with scales")
        else stream.normal(shape, DTYPES[case.dtype])
    )


def _experts(case: MoeRoutingCase) -> torch.Tensor:
    """Different experts for each token: the first of an order of its own."""
    worth = torch.from_numpy(Stream(case.seed, "experts").random_uint64(case.tokens * case.experts) >> 2).to(
        torch.int64
    )
    worth = worth.reshape(case.tokens, case.experts)
    favoured, least = case.here.start, case.top_k
    if case.load == "one gets all":
        worth[:, favoured] = -1
    elif case.load == "first gets none" and case.experts > least:
        worth[:, favoured] = 2**62
    elif case.load == "few":
        worth[:, least + 1 :] += 2**62
    chosen = worth.argsort(dim=1, stable=True)[:, : case.top_k].to(torch.int32)
    if case.padded_ids != "none":
        chosen[::3] = NOWHERE if case.padded_ids == "-1" else case.experts
    return chosen


def coordinates(inputs: MoeRoutingInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token, expert and which of the token's experts."""
    tokens, top_k = inputs.experts.shape
    if output == "counts":
        return {"expert": torch.arange(inputs.first, inputs.last)}
    if output == "src_to_dst_row":
        names = {"token": torch.arange(tokens).unsqueeze(1), "choice": torch.arange(top_k).unsqueeze(0)}
        return names | {"expert": inputs.experts.to(torch.int64)}
    if output == "scale" and inputs.form in ("as they are", "one scale"):
        return {"row": torch.arange(0)}
    src_to_dst_row = moe_routing(inputs)["src_to_dst_row"].value.flatten()
    pair = torch.full((tokens * top_k,), NO_COORDINATE)
    pair[src_to_dst_row[src_to_dst_row != NOWHERE]] = torch.arange(tokens * top_k)[src_to_dst_row != NOWHERE]
    named = pair != NO_COORDINATE
    found = {
        "row": torch.arange(tokens * top_k),
        "token": torch.where(named, pair // top_k, NO_COORDINATE),
        "expert": torch.where(named, inputs.experts.flatten()[pair.clamp(min=0)].to(torch.int64), NO_COORDINATE),
    }
    if output == "scale":
        return found
    return {name: place.unsqueeze(1) for name, place in found.items()} | {
        "column": torch.arange(inputs.states.shape[1]).unsqueeze(0)
    }


def _counts_add_up(subject: Subject, case: MoeRoutingCase) -> Comparison:
    inputs = build_inputs(case)
    counts = subject.run(inputs)["counts"]
    here = ((inputs.experts >= inputs.first) & (inputs.experts < inputs.last)).sum().reshape(1)
    right = Derived(here.to(torch.float64), torch.zeros(1, dtype=torch.float64))
    return compare({"counts": right}, {"counts": counts.sum().reshape(1).to(torch.float64)}, "the sum of all counts")


def _copies_are_found(subject: Subject, case: MoeRoutingCase) -> Comparison:
    """Every token is where its places say; whatever the order of copies is."""
    inputs = build_inputs(case)
    outputs = subject.run(inputs)
    src_to_dst_row = outputs["src_to_dst_row"]
    here = src_to_dst_row != NOWHERE
    found = outputs["rows"][src_to_dst_row.clamp(min=0)]
    right = inputs.states.unsqueeze(1).expand_as(found)
    bound = torch.where(here.unsqueeze(2).expand_as(found), 0.0, torch.inf).to(torch.float64)
    given = {"rows": found.flatten(0, 1)}
    expected = {"rows": Derived(right.flatten(0, 1), bound.flatten(0, 1), found.dtype)}
    return compare(expected, given, "copies at their places")


def _choices_in_reverse(inputs: MoeRoutingInputs, case: MoeRoutingCase) -> Changed[MoeRoutingInputs]:
    """Which of a token's experts is named first changes places only."""
    del case
    return Changed(
        replace(inputs, experts=inputs.experts.flip(1).contiguous()),
        lambda outputs: {"counts": outputs["counts"], "src_to_dst_row": outputs["src_to_dst_row"].flip(1)},
        lambda outputs: {"counts": outputs["counts"], "src_to_dst_row": outputs["src_to_dst_row"]},
    )


def _sizes(model: Model) -> Box:
    return {
        "tokens": FEW,
        "experts": (model.experts,),
        "top_k": (model.top_k,),
        "width": (model.hidden,),
        "dtype": ("bfloat16",),
    }


component = Component(
    name="moe_routing",
    summary="tokens sorted by expert: which copy goes where, and how many each expert gets",
    case_type=MoeRoutingCase,
    outputs=("rows", "src_to_dst_row", "counts", "scale"),
    inputs=build_inputs,
    reference=moe_routing,
    illegal=(wrong_element("an expert beyond all", "experts", lambda inputs: inputs.all_experts + 1),),
    coordinates=coordinates,
    highlighted_region="experts elsewhere",
    relations=(
        Property("counts_add_up", "counts add up to the copies that are here", _counts_add_up),
        Property("copies_are_found", "every token is found at its places", _copies_are_found,
                 within={"form": ("as they are", "with scales")}),
        relation("order_of_choices", "the order in which a token names its experts does not matter",
                 _choices_in_reverse, bits=True, within={"top_k": range(2, 513)}),
    ),
    profiles=of_experts(_sizes),
    baselines=BASELINES["moe_routing"],
)  # fmt: skip
