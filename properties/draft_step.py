"""The steps of a draft model: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box, allows
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared.baselines import BASELINES
from npudiff.reference.draft_step import DraftStepInputs, draft_step
from npudiff.text import listed

KINDS = ("draft", "token", "prompt", "piece")
"""draft: a token and its drafts, of which some are accepted. token: one without. prompt: the last piece of a prompt.
piece: one behind which more of the prompt follows, so that nothing is sampled."""

PROMPTS = (1, 2, 3, 17, 130)
PAGES = (16, 128, 48, 64, 1, 256, 1024, 4)
_LIMIT = 2**20
_VOCABULARY = 2**17


@dataclass(frozen=True)
class Step:
    """One request in a step of the target."""

    kind: str
    before: int
    """Tokens that it had before."""
    rows: int
    """Rows of it in the step."""
    taken: int = 1
    """Of a draft: tokens that were sampled, the one behind the accepted drafts included."""

    @property
    def drafts(self) -> int:
        """Rows that are drafts."""
        return self.rows - 1 if self.kind == "draft" else 0


def _draw_requests(choose: Chooser, box: Box, case: DraftStepCase) -> tuple[Step, ...]:
    page, most = case.page_size, case.steps
    uniform = box.get("uniform", (False, True))
    kinds, counts = within((*KINDS[:1] * 4, *KINDS), box.get("kind")), (*range(1, most + 1), *[most] * -(-most // 2))
    if not allows(uniform, False):
        kinds, counts = KINDS[:1], (most,)
    accepting = not allows(box.get("rejected", (False, True)), True)
    near = (0, page - 1, page, 2 * page - 2, 2 * page + 1, 1, 7)
    far = () if choose.usual_only else (4095, 70_001, 131_072)

    def one() -> Step:
        kind = choose.pick(kinds)
        before, rows, taken = choose.pick((*near * 3, *far)), choose.pick(PROMPTS), choose.pick(range(2**12))
        drafts = choose.pick(counts)
        if kind == "draft":
            whole = accepting or taken % 4 == 3
            return Step(kind, before, 1 + drafts, 1 + (drafts if whole else taken % (1 + drafts)))
        return Step(kind, before, 1 if kind == "token" else rows)

    drawn = choose.draw_list(box, "batch", (1, 2, 3, 5, 9), one)
    drawn = _balanced(drawn) if choose.pick((*[False] * 7, True)) else drawn
    assume(all(each.kind in kinds for each in drawn))
    assume(allows(uniform, all(each.drafts == most for each in drawn)))
    assume(allows(box.get("rejected", (False, True)), any(each.taken <= each.drafts for each in drawn)))
    return drawn


def _balanced(requests: tuple[Step, ...]) -> tuple[Step, ...]:
    """Prompts of as many rows as if all had as many: what is guessed from a sum is wrong then."""
    if len(requests) < 3:
        return requests
    rows = max(2, requests[0].rows)
    changes = [0, 1, -1, *[0] * (len(requests) - 3)]
    return tuple(Step("prompt", one.before, rows + change) for one, change in zip(requests, changes, strict=True))


def _shown(one: Step) -> str:
    if one.kind == "draft":
        return f"{one.taken - 1} of {one.drafts} accepted behind {one.before}"
    return f"{one.kind} of {one.rows} behind {one.before}"


@dataclass(frozen=True)
class DraftStepCase(Case):
    """One step, as lengths."""

    requests: tuple[Step, ...] = part(
        draw=_draw_requests, shown=lambda case: listed([_shown(one) for one in case.requests], "request", 8)
    )
    steps: int = axis("drafts of a request at most, and passes of the draft model", range(1, 65), 1,
                      drawn=(1, 2, 3, 4, 7, 15, 16, 33), shown="{} step(s)", always=True)  # fmt: skip
    page_size: int = axis("tokens per page", range(1, 1025), 16, drawn=PAGES, shown="page {}", always=True)
    room_left: int | None = axis(
        "tokens that the longest request may still have; none for enough", range(_LIMIT), None, optional=True,
        drawn=(None, None, None, 0, 1, 2, 3, 5), shown="room for {}", region="at the limit",
    )  # fmt: skip
    spare_pages: int = part(0, range(2**12), drawn=(0, 1, 3), shown="{} spare page(s)")
    """Columns of the table that nobody needs."""
    seed: int = seed()

    drawn_first = ("page_size", "steps", "requests")
    outliers = ("batch",)
    huge_axes = ("batch",)

    @derived("number of requests", range(1, 2**17))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("what requests are in the step with", KINDS, each=True)
    def kind(self) -> Collection[str]:
        """What requests are in the step with."""
        return {one.kind for one in self.requests}

    @derived("whether each request has as many drafts as there are steps", (False, True))
    def uniform(self) -> bool:
        """Whether each request has as many drafts as there are steps."""
        return all(one.drafts == self.steps for one in self.requests)

    @derived("whether any draft is rejected", (False, True))
    def rejected(self) -> bool:
        """Whether any draft is rejected."""
        return any(one.taken <= one.drafts for one in self.requests)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, rejected ones included."""
        return max(one.before + one.rows for one in self.requests)

    @property
    def limit(self) -> int:
        """Tokens that a request may have."""
        return self.longest + (2 * self.steps + 100 if self.room_left is None else self.room_left)

    @property
    def width(self) -> int:
        """Columns of the block table."""
        return -(-min(self.limit, self.longest + self.steps + 1) // self.page_size) + self.spare_pages

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        for one in self.requests:
            if one.kind not in KINDS or one.before < 0 or one.rows < 1 or (one.kind == "token" and one.rows != 1):
                yield f"there is no request in a step with {one}"
            if one.kind == "draft" and not (1 < one.rows <= self.steps + 1 and 1 <= one.taken <= one.rows):
                yield f"of {one.drafts} drafts {one.taken - 1} cannot be accepted, in {self.steps} steps"
        if self.longest > _LIMIT or sum(one.rows for one in self.requests) > _LIMIT:
            yield f"there are more than {_LIMIT} tokens"
        if self.width * len(self.requests) > 2**24:
            yield f"the block table would have more than {2**24} entries"

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.width * len(self.requests) <= 2**15

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        drafted = [one for one in self.requests if one.kind == "draft"]
        page = self.page_size
        return {
            "some are rejected": self.rejected,
            "none is rejected": any(one.taken > one.drafts for one in drafted),
            "fewer drafts than steps": any(one.drafts < self.steps for one in drafted),
            "with and without drafts": 0 < len(drafted) < len(self.requests),
            "over a page": any((one.before + one.rows) // page != (one.before + one.rows + self.steps - 1) // page
                               for one in self.requests),
        }  # fmt: skip


def build_inputs(case: DraftStepCase) -> DraftStepInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    requests, steps = len(case.requests), case.steps
    total = sum(one.rows for one in case.requests)
    positions = [torch.arange(one.before, one.before + one.rows) for one in case.requests]
    sampled = _tokens(case, "sampled", requests, steps + 1)
    counts = torch.tensor([one.taken if one.kind == "draft" else int(one.kind != "piece") for one in case.requests])
    tokens, first = _tokens(case, "tokens", total), 0
    for request, one in enumerate(case.requests):
        if one.kind == "draft":  # what was accepted is what was drafted
            sampled[request, : one.taken - 1] = tokens[first + 1 : first + one.taken]
        first += one.rows
    table = torch.from_numpy(Stream(case.seed, "table").permutations(1, requests * case.width))
    return DraftStepInputs(
        tokens=tokens,
        positions=torch.cat(positions),
        sampled=sampled.masked_fill(torch.arange(steps + 1) >= counts.unsqueeze(1), -1),
        known=_tokens(case, "known", requests),
        proposed=_tokens(case, "proposed", requests, steps),
        lengths=torch.tensor([one.before + one.rows for one in case.requests]),
        block_table=1 + table.reshape(requests, case.width),
        rows=tuple(one.rows for one in case.requests),
        drafts=tuple(one.drafts for one in case.requests),
        page_size=case.page_size,
        limit=case.limit,
    )


def _tokens(case: DraftStepCase, name: str, *shape: int) -> torch.Tensor:
    stream, count = Stream(case.seed, name), int(torch.Size(shape).numel())
    tokens = torch.from_numpy(stream.integer_array(0, _VOCABULARY, count))
    rare = torch.from_numpy(stream.integer_array(0, 8, count))
    ends = torch.where(rare == 0, 0, torch.where(rare == 1, _VOCABULARY - 1, tokens))
    return ends.reshape(shape)


def coordinates(inputs: DraftStepInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: request, and row, step or place."""
    requests = torch.arange(len(inputs.rows))
    if output == "first_tokens":
        rows = torch.tensor(inputs.rows)
        starts = torch.repeat_interleave(rows.cumsum(0) - rows, rows)
        return {"request": torch.repeat_interleave(requests, rows), "row": torch.arange(len(inputs.tokens)) - starts}
    if output.startswith("step_"):
        return {"step": torch.arange(1, inputs.steps).unsqueeze(1), "request": requests.unsqueeze(0)}
    if output.startswith("verify_"):
        return {"request": requests.unsqueeze(1), "place": torch.arange(inputs.steps + 1).unsqueeze(0)}
    return {"request": requests}


def _of_requests(inputs: DraftStepInputs, order: Sequence[int]) -> tuple[DraftStepInputs, list[int]]:
    """The inputs of some requests in some order, and their rows among those of all."""
    ends = torch.tensor([0, *inputs.rows]).cumsum(0).tolist()
    rows = [row for one in order for row in range(ends[one], ends[one + 1])]
    names = ("sampled", "known", "proposed", "lengths", "block_table")
    tensors = {name: getattr(inputs, name)[order] for name in names}
    return replace(
        inputs, tokens=inputs.tokens[rows], positions=inputs.positions[rows],
        rows=tuple(inputs.rows[one] for one in order), drafts=tuple(inputs.drafts[one] for one in order), **tensors,
    ), rows  # fmt: skip


def _taken(inputs: DraftStepInputs, order: Sequence[int], rows: list[int], outputs: Outputs) -> Outputs:
    """Outputs as requests in another order have them; the row of a sample is counted in the new order."""
    taken = {name: output[:, order] if name.startswith("step_") else output[order]
             for name, output in outputs.items() if name != "first_tokens"}  # fmt: skip
    if "first_tokens" in outputs:
        taken["first_tokens"] = _real(inputs, order, outputs["first_tokens"][rows])
    if "sample_row" in taken:
        counts = torch.tensor(inputs.rows)
        starts, there = counts.cumsum(0) - counts, counts[order]
        taken["sample_row"] = taken["sample_row"] - starts[order] + there.cumsum(0) - there
    return taken


def _real(inputs: DraftStepInputs, order: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """Tokens of the first pass, with 0 in rows of padding, which may hold anything."""
    counts = (inputs.sampled != -1).sum(dim=1).tolist()
    kept: list[bool] = []
    for one in order:
        drafts = inputs.drafts[one]
        padding = drafts + 1 - counts[one] if drafts else 0
        kept += [True] * (inputs.rows[one] - padding) + [False] * padding
    return tokens * torch.tensor(kept)


def _reordered(inputs: DraftStepInputs, order: Sequence[int], case: DraftStepCase) -> Changed[DraftStepInputs]:
    smaller, rows = _of_requests(inputs, order)
    places = list(range(len(order)))

    def part(outputs: Outputs) -> Outputs:
        tokens = outputs.get("first_tokens")
        return {**outputs} if tokens is None else {**outputs, "first_tokens": _real(smaller, places, tokens)}

    chosen = replace(case, requests=tuple(case.requests[one] for one in order))
    return Changed(smaller, lambda outputs: _taken(inputs, order, rows, outputs), part, case=chosen)


def _other_order(inputs: DraftStepInputs, case: DraftStepCase) -> Changed[DraftStepInputs]:
    """Requests in another order."""
    return _reordered(inputs, Stream(case.seed, "order").permutation(len(case.requests)), case)


def _alone(inputs: DraftStepInputs, case: DraftStepCase) -> Changed[DraftStepInputs]:
    """One of the requests without the others."""
    return _reordered(inputs, Stream(case.seed, "alone").integers(0, len(case.requests), 1), case)


_FREE: Box = {"batch": range(2, 2**17), "room_left": (None,)}
"""Nothing is said of what would be verified at the limit."""

component = Component(
    name="draft_step",
    summary="what a draft model and the next verification are given, by what was accepted: tokens, positions, slots",
    case_type=DraftStepCase,
    outputs=(
        "next_token", "rejected", "sample_row", "first_tokens", "step_positions", "step_lengths", "step_slots",
        "verify_tokens", "verify_positions", "verify_slots",
    ),
    inputs=build_inputs,
    reference=draft_step,
    illegal=(
        wrong_element("a negative number of drafts", "drafts", constant(-1)),
        wrong_element("more drafts than rows", "drafts", lambda inputs: max(inputs.rows)),
        wrong_element("a request without rows", "rows", constant(0)),
    ),
    coordinates=coordinates,
    highlighted_region="some are rejected",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _other_order, bits=True,
                 within=_FREE),
        relation("a_request_alone", "a request's company does not matter", _alone, bits=True,
                 within=_FREE),
    ),
    baselines=BASELINES["draft_step"],
)  # fmt: skip
