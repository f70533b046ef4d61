"""Acceptance of drafts: cases, data, and what must hold."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.compare import same_bits
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Comparison, Component, OutputComparison, Property, Subject
from npudiff.model.constraints import Box, allows
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import empty_parts, rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.properties._shared.rows import GAPS, with_row_stride
from npudiff.reference.draft_acceptance import RULES, DraftAcceptanceInputs, draft_acceptance
from npudiff.text import listed

GREEDY = ("none", "all", "some")
"""Which requests take the most likely tokens."""

DRAFTS = ("probabilities", "tokens")
"""tokens: as of n-grams, whose drafts have no probabilities."""

LIKENESS = ("near", "same", "far", "one token", "close")
"""How the draft model's distribution is to the target's. near: most tokens are accepted. same: all are. far: few are.
one token: the target has all of its mass on one, as behind a top-k of 1. close: the second token of the target is as
likely as the first one, but for a thousandth."""

UNIFORMS = ("even", "small", "large")
"""small: up to 2**-20, where only tokens without mass are rejected. large: near 1."""

MISSING = ("none", "last", "some", "massless")
"""Which tokens of a request were not drafted, and are -1. massless: some were, and have no mass in the draft."""

_DISTANCE = {"near": 0.3, "same": 0.0, "far": 3.0, "one token": 0.5, "close": 0.3}
MOST_ELEMENTS = 2**19
MOST_DRAFT = 32


def _draw_lengths(choose: Chooser, box: Box, case: DraftAcceptanceCase) -> tuple[int, ...]:
    del case  # nothing of it is drawn yet
    lengths = within((1, 2, 3, 1, 4, 8, 1, 2, 3, 17, 4, 32), box.get("length"))[:4096]
    drawn = choose.draw_list(box, "requests", (1, 2, 3, 5, 9), lambda: choose.pick(lengths), lambda first, _: first)
    empty = empty_parts.which(choose.pick(empty_parts.OFTEN), len(drawn))
    if not allows(box.get("length", (0,)), 0):
        return drawn
    return tuple(0 if place in empty else one for place, one in enumerate(drawn))


def _affords(case: DraftAcceptanceCase, vocabulary: int) -> bool:
    return vocabulary * (sum(case.lengths) + len(case.lengths)) <= MOST_ELEMENTS


@dataclass(frozen=True)
class DraftAcceptanceCase(Case):
    """One step, as lengths and recipes."""

    lengths: tuple[int, ...] = part(
        draw=_draw_lengths, shown=lambda case: f"drafts of {listed([str(one) for one in case.lengths], 'request')}"
    )
    vocabulary: int = axis(
        "tokens of the vocabulary", range(2, 2**18 + 1), 33, drawn=(33, 2, 100, 1000, 1025, 2049, 3000, 4097, 32000),
        affordable=_affords, shown="{} tokens", always=True,
    )  # fmt: skip
    greedy: str = axis("which requests take the most likely tokens", GREEDY, "none", shown="{} greedy", region="greedy")
    drafts: str = axis("what drafts have", DRAFTS, "probabilities", shown="drafts of {}", region="drafts of {}")
    likeness: str = axis("how draft and target are to each other", LIKENESS, "near", shown="{}", region="{}")
    uniforms: str = axis("random numbers of acceptance", UNIFORMS, "even", shown="{} uniforms")
    missing: str = axis("which tokens were not drafted", MISSING, "none", drawn=(*MISSING[:1] * 3, *MISSING),
                        shown="{} missing", region="missing tokens")  # fmt: skip
    spare: int = axis("drafted tokens that nobody has, of the room of the result", range(MOST_DRAFT), 0,
                      drawn=(0, 0, 1, 3), shown="{} spare")  # fmt: skip
    rule: str = axis("what decides whether a draft is accepted", RULES, RULES[0], drawn=RULES[:1], shown="by {} rule",
                     region="any rule")  # fmt: skip
    rows: str = rows.axis()
    seed: int = seed()

    drawn_first = ("lengths", "vocabulary")
    outliers = ("requests", "vocabulary")

    @derived("number of requests", range(1, 2**12 + 1))
    def requests(self) -> int:
        """Number of requests."""
        return len(self.lengths)

    @derived("drafted tokens of a request", range(MOST_DRAFT + 1), each=True)
    def length(self) -> Collection[int]:
        """Drafted tokens of the requests."""
        return set(self.lengths)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.vocabulary * (sum(self.lengths) + len(self.lengths)) > 2**26:
            yield f"probabilities would have more than {2**26} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "no draft": 0 in self.lengths,
            "lengths differ": len(set(self.lengths)) > 1,
            "several requests": len(self.lengths) > 1,
            "some greedy": self.greedy == "some" and len(self.lengths) > 1,
        }


def build_inputs(case: DraftAcceptanceCase) -> DraftAcceptanceInputs:
    """Build the inputs of a case."""
    total, requests, size = sum(case.lengths), len(case.lengths), case.vocabulary
    logits, missing = Stream(case.seed, "target").normal((total, size), torch.float32), _missing(case)
    # -1 taken for an index is the last token: it is the likely one of each other row without a draft.
    of_the_last = missing.nonzero().flatten()[::2]
    logits[of_the_last, -1] = logits[of_the_last].amax(dim=-1) + 1.0
    noise = Stream(case.seed, "draft").normal((total, size), torch.float32)
    draft = torch.softmax(logits + noise * _DISTANCE[case.likeness], -1)
    target = torch.softmax(logits * 1.5 if case.likeness == "near" else logits, dim=-1)
    if case.likeness == "close":
        best, second = target.topk(2, dim=-1).indices.unbind(dim=-1)
        target[torch.arange(total), second] = target[torch.arange(total), best] * (1 - 2.0**-10)
    if case.likeness == "one token":
        target = torch.zeros_like(target).scatter(1, logits.argmax(dim=-1, keepdim=True), 1.0)
    if case.likeness == "same":
        draft = target.clone()
    drafted = _drafted(case, logits, draft).masked_fill(missing, -1)
    if case.missing == "massless":
        rows_without = torch.arange(0, total, 2)
        draft[rows_without, drafted[rows_without].long()] = 0.0
    uniform = Stream(case.seed, "uniform").random_uint64(total).astype("float64") / 2.0**64
    numbers = torch.from_numpy(uniform).to(torch.float32).clamp(2.0**-24, 1 - 2.0**-24)
    exponential = _exponential(case, requests * size).view(requests, size)
    places = torch.arange(requests)
    return DraftAcceptanceInputs(
        draft_tokens=drafted,
        target=with_row_stride(target, case.rows),
        draft=with_row_stride(draft, case.rows, GAPS[1]) if case.drafts == "probabilities" else None,
        bonus=torch.tensor(Stream(case.seed, "bonus").integers(0, size, requests), dtype=torch.int32),
        uniform={"even": numbers, "small": numbers * 2.0**-20, "large": 1 - numbers * 2.0**-10}[case.uniforms],
        exponential=exponential,
        greedy={"none": places < 0, "all": places >= 0, "some": places % 2 == 1}[case.greedy],
        lengths=case.lengths,
        room=max(1, *case.lengths) + case.spare,
        rule=case.rule,
    )


def _exponential(case: DraftAcceptanceCase, count: int) -> torch.Tensor:
    words = Stream(case.seed, "exponential").random_uint64(count).astype("float64")
    return -torch.from_numpy((words + 1) / (2.0**64 + 1)).log().clamp(min=-60.0).to(torch.float32).clamp(max=-1e-6)


def _drafted(case: DraftAcceptanceCase, logits: torch.Tensor, draft: torch.Tensor) -> torch.Tensor:
    """Half of the drafted tokens are the target's most likely ones, the others what the draft model would draw."""
    total = len(logits)
    if not total:
        return torch.zeros(0, dtype=torch.int32)
    level = torch.from_numpy(Stream(case.seed, "drawn").random_uint64(total).astype("float64") / 2.0**64)
    drawn = (
        torch.searchsorted(draft.double().cumsum(dim=-1), level.unsqueeze(1)).squeeze(1).clamp(max=case.vocabulary - 1)
    )
    likely = torch.from_numpy(Stream(case.seed, "likely").random_uint64(total) % 2 == 0)
    return torch.where(likely, logits.argmax(dim=-1), drawn).to(torch.int32)


def _missing(case: DraftAcceptanceCase) -> torch.Tensor:
    """Bool ``[tokens]``: which were not drafted."""
    total = sum(case.lengths)
    missing = torch.zeros(total, dtype=torch.bool)
    if case.missing == "last":
        ends = itertools.accumulate(case.lengths)
        missing[[end - 1 for end, length in zip(ends, case.lengths, strict=True) if length]] = True
    if case.missing == "some":
        missing = torch.tensor(Stream(case.seed, "missing").integers(0, 3, total), dtype=torch.int64) == 0
    return missing


def coordinates(inputs: DraftAcceptanceInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: request and place."""
    del output  # there is one
    return {
        "request": torch.arange(len(inputs.lengths)).unsqueeze(1),
        "place": torch.arange(inputs.room + 1).unsqueeze(0),
        "drafted": torch.tensor(inputs.lengths).unsqueeze(1),
    }


def _of_requests(inputs: DraftAcceptanceInputs, order: Sequence[int], room: int) -> DraftAcceptanceInputs:
    ends = torch.tensor([0, *inputs.lengths]).cumsum(dim=0).tolist()
    places = [row for one in order for row in range(ends[one], ends[one + 1])]
    return replace(
        inputs, draft_tokens=inputs.draft_tokens[places], target=inputs.target[places], uniform=inputs.uniform[places],
        draft=None if inputs.draft is None else inputs.draft[places], bonus=inputs.bonus[order],
        exponential=inputs.exponential[order], greedy=inputs.greedy[order], room=room,
        lengths=tuple(inputs.lengths[one] for one in order),
    )  # fmt: skip


def _other_order(inputs: DraftAcceptanceInputs, case: DraftAcceptanceCase) -> Changed[DraftAcceptanceInputs]:
    """Requests in another order."""
    order = Stream(case.seed, "order").permutation(len(case.lengths))
    return Changed(_of_requests(inputs, order, inputs.room), lambda outputs: {"tokens": outputs["tokens"][order]})


def _alone(inputs: DraftAcceptanceInputs, case: DraftAcceptanceCase) -> Changed[DraftAcceptanceInputs]:
    """One of the requests without the others."""
    one = Stream(case.seed, "alone").integers(0, len(case.lengths), 1)[0]
    room = max(1, case.lengths[one])

    def cut(outputs: Outputs) -> Outputs:
        return {"tokens": outputs["tokens"][[one], : room + 1]}

    return Changed(_of_requests(inputs, [one], room), cut, case=replace(case, lengths=(case.lengths[one],), spare=0))


SAMPLES = 2048
"""Requests of one pair of distributions, of which the first tokens are counted."""

BY_CHANCE = 1e-12
"""How often a right one is further off in a case: a run of a thousand cases accuses one in 10^9."""


def _many(subject: Subject, case: DraftAcceptanceCase) -> DraftAcceptanceCase:
    """As many requests as are counted, with a few drafts each, or with as many as the longest of the case has."""
    for length in (2 + case.seed % 5, max(1, *case.lengths)):
        large = replace(
            case, lengths=(length,) * SAMPLES, vocabulary=2 + case.seed % 4, likeness="near", uniforms="even",
            missing="none", spare=0, rows="contiguous",
        )  # fmt: skip
        if subject.reason_against(large) is None:
            break
    subject.require(large, "many requests of one pair of distributions")
    return large


def _one_pair(case: DraftAcceptanceCase) -> tuple[DraftAcceptanceInputs, torch.Tensor]:
    """Requests of one pair of distributions, with random numbers of their own, and the target's of first tokens."""
    inputs, length, size = build_inputs(case), case.lengths[0], case.vocabulary
    words = Stream(case.seed, "pair").random_uint64(2 * length * size).astype("float64")
    shares = (torch.from_numpy(words) / 2.0**64).view(2, length, size) ** 3 + 2.0**-10
    target, draft = (shares / shares.sum(dim=-1, keepdim=True)).to(torch.float32)
    level = torch.from_numpy(Stream(case.seed, "drawn").random_uint64(SAMPLES * length).astype("float64") / 2.0**64)
    ends = draft.double().cumsum(dim=-1).expand(SAMPLES, -1, -1).reshape(SAMPLES * length, size)
    drawn = torch.searchsorted(ends.contiguous(), level.unsqueeze(1)).squeeze(1).clamp(max=size - 1)
    rows_of = torch.arange(length).repeat(SAMPLES)
    with_draft = None if inputs.draft is None else draft[rows_of]
    made = replace(inputs, target=target[rows_of], draft=with_draft, draft_tokens=drawn.to(torch.int32))
    return made, target[0].double()


def _first_tokens(subject: Subject, case: DraftAcceptanceCase) -> Comparison:
    """Count the first tokens of many requests that differ in nothing but random numbers.

    A share of ``n`` samples is further off than by a divergence ``d`` less often than ``2 exp(-n d)`` (Chernoff).
    """
    inputs, target = _one_pair(_many(subject, case))
    tokens = subject.run(inputs)["tokens"][:, 0].long()
    said = "first tokens, as the target has them"
    counts = torch.bincount(tokens.clamp(min=-1) + 1, minlength=len(target) + 1)
    if int(counts[0]) or len(counts) > len(target) + 1:
        return Comparison((OutputComparison("tokens", "a request without a first token", actual=tokens),), said)
    share = counts[1:].double() / SAMPLES
    rare = 2 * torch.exp(-SAMPLES * _divergence(share, target)) * len(target)
    worst = int(rare.argmin())
    if float(rare[worst]) >= BY_CHANCE:
        return Comparison((), said)
    why = f"token {worst} is first in {float(share[worst]):.1%} of {SAMPLES} requests with {inputs.lengths[0]} drafts "
    why += f"each, and the target says {float(target[worst]):.1%}: by chance that is rarer than {BY_CHANCE:g}"
    return Comparison((OutputComparison("tokens", why, actual=tokens),), said)


def _divergence(share: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Kullback and Leibler's, of each token against all others."""
    return torch.xlogy(share, share / target) + torch.xlogy(1 - share, (1 - share) / (1 - target))


FIRST_TOKENS: Property[DraftAcceptanceCase] = Property(
    "first_token_is_the_targets",
    "the first token of a request has the target's distribution, whatever the draft's is",
    _first_tokens,
    within={"greedy": ("none",), "requests": range(1, 9), "length": range(1, 33), "vocabulary": range(2, 101)},
    example_ratio=0.04,
)


def _drafts_and_one(subject: Subject, case: DraftAcceptanceCase) -> Comparison:
    """Put together again what an answer may be: drafted tokens, then one, then nothing."""
    inputs = subject.component.inputs(case)
    outputs = subject.run(inputs)
    tokens, start = outputs["tokens"], 0
    legal = torch.full_like(tokens, -1)
    for request, length in enumerate(inputs.lengths):
        taken = int((tokens[request, : length + 1] != -1).sum())
        legal[request, : taken - 1] = inputs.draft_tokens[start : start + max(0, taken - 1)]
        if taken:
            legal[request, taken - 1] = inputs.bonus[request] if taken > length else tokens[request, taken - 1]
        start += length
    return same_bits({"tokens": legal}, {"tokens": tokens}, "drafted tokens, then one, then nothing")


DRAFTS_AND_ONE: Property[DraftAcceptanceCase] = Property(
    "drafts_and_then_one",
    "a request gets the first of its drafts, one more token, which is the bonus behind them all, and nothing else",
    _drafts_and_one,
)


component = Component(
    name="draft_acceptance",
    summary="which tokens of a draft the target model accepts, greedily or by rejection, and what comes behind them",
    case_type=DraftAcceptanceCase,
    outputs=("tokens",),
    inputs=build_inputs,
    reference=draft_acceptance,
    illegal=(
        wrong_element("a negative number of drafted tokens", "lengths", constant(-1)),
        wrong_element("more drafted tokens than rows", "lengths", lambda inputs: len(inputs.target) + 1),
        wrong_element("a drafted token beyond the vocabulary", "draft_tokens", lambda inputs: inputs.target.shape[1]),
    ),
    coordinates=coordinates,
    highlighted_region="lengths differ",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _other_order, bits=True,
                 within={"requests": range(2, 2**12 + 1)}),
        relation("a_request_alone", "a request's company does not matter", _alone, bits=True,
                 within={"requests": range(2, 2**12 + 1), "greedy": ("none", "all")}),
        FIRST_TOKENS,
        DRAFTS_AND_ONE,
    ),
    baselines=BASELINES["draft_acceptance"],
)  # fmt: skip
