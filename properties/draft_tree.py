"""Trees of drafted tokens: cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, Outputs, relation
from npudiff.model.component import Component
from npudiff.model.constraints import Box
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared.baselines import BASELINES
from npudiff.reference.draft_tree import MASKS, DraftTreeInputs, draft_tree
from npudiff.text import listed

SHAPES = ("scored", "chain", "star", "bushy", "random")
"""Which candidates of the search are verified. scored: those with the best scores, as sglang has them. chain: those of
the last step with all above them. star: those of the first steps. bushy: all children of a few. random: any."""

MATCHES = ("first", "last", "random", "none")
"""Which child of a node has the token that the target says: the first, the last, any or none, or none at all."""

TOKENS = ("different", "few", "equal siblings", "neighbours")
"""few: three tokens, which stand everywhere in a tree. equal siblings: those of a parent have one token by twos.
neighbours: numbers that follow each other, far out, where those of 16 bits cannot tell them apart."""

FIRST_NEIGHBOURS = (2049, 4097, 65_530, 100_001)

ORDERS = ("sorted", "shuffled")
"""How nodes are numbered. sorted: as candidates are, as sglang has it, so that siblings are neighbours. shuffled: those
of each step in any order."""

NOT_DRAFTED = 2**17
"""A token that no node has."""

MOST_ELEMENTS = 2**18
MOST_MASK = 2**26
VERIFIED = (1, 0, 5, 2, 17, 64, 100, 129, 1023)
FAR = (4097, 32768, 100_001)
"""Verified tokens, where a mask has no columns of theirs."""


@dataclass(frozen=True)
class Draft:
    """The tree of one request."""

    verified: int
    shape: str = "scored"
    matches: str = "first"


def _draw_requests(choose: Chooser, box: Box, case: DraftTreeCase) -> tuple[Draft, ...]:
    usual = VERIFIED if case.mask_mode == "full" else (*VERIFIED, *FAR)
    verified = choose.options(box, "verified", usual)
    shapes, matches = within(SHAPES, box.get("shape")), within(MATCHES, box.get("matches"))
    return choose.draw_list(
        box, "batch", (1, 2, 3, 5, 9),
        lambda: Draft(choose.pick(verified), choose.pick(shapes), choose.pick(matches)),
        lambda first, other: replace(other, verified=first.verified),
    )  # fmt: skip


def _shown(case: DraftTreeCase) -> str:
    trees = [f"{one.verified} ({one.shape}, {one.matches})" for one in case.requests]
    return f"trees behind {listed(trees, 'request', most=9)}"


def _number_of_candidates(case: DraftTreeCase) -> int:
    return case.topk + (case.depth - 1) * case.topk**2


@dataclass(frozen=True)
class DraftTreeCase(Case):
    """One call, as sizes and recipes."""

    requests: tuple[Draft, ...] = part(draw=_draw_requests, shown=_shown)
    mask_mode: str = axis("which columns a mask has", MASKS, "full", shown="mask {}", always=True, region="mask {}")
    topk: int = axis("candidates of each parent, and parents of a step", range(1, 33), 1,
                     drawn=(1, 2, 3, 4, 2, 8, 5, 10), shown="topk {}", always=True)  # fmt: skip
    depth: int = axis("steps of the search", range(1, 33), 1, drawn=(1, 2, 3, 4, 5, 3, 6, 8, 7), shown="depth {}",
                      always=True)  # fmt: skip
    draft_token_num: int = axis(
        "nodes of a tree, the root included", range(2, 257), 2, shown="{} nodes", always=True,
        drawn=(2, 3, 4, 8, 5, 6, 16, 7, 12, 17, 32, 33, 48, 64, 65, 100, 129),
        fits=lambda case, count: count <= 1 + _number_of_candidates(case),
        affordable=lambda case, count: case.mask_elements(count) <= MOST_ELEMENTS,
    )  # fmt: skip
    tokens: str = axis("how tokens are made", TOKENS, "different", shown="{} tokens", region="{} tokens")
    order: str = axis("how nodes are numbered", ORDERS, "sorted", drawn=(*ORDERS[:1] * 2, *ORDERS), shown="{} nodes",
                      region="{} nodes")  # fmt: skip
    seed: int = seed()

    drawn_first = ("mask_mode", "requests")
    shown_first = ("topk", "depth", "draft_token_num", "mask_mode", "requests")
    outliers = ("batch", "verified", "draft_token_num")

    @derived("number of requests", range(1, 2**12 + 1))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens before a root", range(2**20), each=True)
    def verified(self) -> Collection[int]:
        """Verified tokens of the requests."""
        return {one.verified for one in self.requests}

    @derived("which candidates are verified", SHAPES, each=True)
    def shape(self) -> Collection[str]:
        """Shapes of the trees."""
        return {one.shape for one in self.requests}

    @derived("which children have the token that the target says", MATCHES, each=True)
    def matches(self) -> Collection[str]:
        """What the target says of the trees."""
        return {one.matches for one in self.requests}

    def mask_elements(self, count: int) -> int:
        """Return the elements of the masks of trees of so many nodes."""
        verified = sum(one.verified for one in self.requests) if self.mask_mode == "full" else 0
        return count * (verified + self.batch * count)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.draft_token_num > 1 + _number_of_candidates(self):
            yield f"trees of {self.draft_token_num} nodes need more than {_number_of_candidates(self)} candidates"
        if self.mask_elements(self.draft_token_num) > MOST_MASK:
            yield f"masks would have more than {MOST_MASK} elements"

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.mask_elements(self.draft_token_num) <= 4 * MOST_ELEMENTS

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "several requests": self.batch > 1,
            "verified lengths differ": len({one.verified for one in self.requests}) > 1,
            "branches": self.topk > 1 and self.draft_token_num > 2,
        }


@dataclass(frozen=True)
class Search:
    """What a beam search with random scores leaves."""

    scores: list[float]
    """Of each candidate; a parent's is larger than its children's."""
    above: list[int]
    """Parent of each candidate, -1 of those of the root."""
    step: list[int]
    """Step of each candidate."""
    parent_list: list[int]


def searched(case: DraftTreeCase, number: int) -> Search:
    """Search as sglang does: a step goes on from the ``topk`` best candidates of the step before, the best first."""
    topk, depth = case.topk, case.depth
    likely = Stream(case.seed, f"scores of {number}").integers(1, 2**30, _number_of_candidates(case))
    scores = [one / 2.0**30 for one in likely[:topk]]
    above, step, beam, parent_list = [-1] * topk, [0] * topk, list(range(topk)), [-1] * (depth > 1)
    for later in range(1, depth):
        parent_list += beam
        first = len(scores)
        for parent in beam:
            scores += [scores[parent] * one / 2.0**30 for one in likely[len(scores) : len(scores) + topk]]
            above += [parent] * topk
        step += [later] * (len(scores) - first)
        beam = sorted(range(first, len(scores)), key=lambda one: -scores[one])[:topk]
    return Search(scores, above, step, parent_list)


def chosen(case: DraftTreeCase, number: int, search: Search) -> list[int]:
    """Return the candidates that are verified, in order: those that a shape has first, with all above them."""
    count = len(search.scores)
    place = Stream(case.seed, f"shape of {number}").permutation(count)
    orders: Mapping[str, Callable[[int], tuple[float, ...]]] = {
        "scored": lambda one: (-search.scores[one],),
        "chain": lambda one: (-search.step[one], place[one]),
        "star": lambda one: (search.step[one], place[one]),
        "bushy": lambda one: (place[search.above[one]], place[one]) if search.above[one] >= 0 else (-1, place[one]),
        "random": lambda one: (place[one],),
    }
    taken: set[int] = set()
    for candidate in sorted(range(count), key=orders[case.requests[number].shape]):
        way = [candidate]
        while search.above[way[-1]] >= 0:
            way.append(search.above[way[-1]])
        for one in reversed(way):
            if len(taken) < case.draft_token_num - 1:
                taken.add(one)
    if case.order == "shuffled":
        return sorted(taken, key=lambda one: (search.step[one], place[one]))
    return sorted(taken)


def build_inputs(case: DraftTreeCase) -> DraftTreeInputs:
    """Build the inputs of a case."""
    parents, selected, tokens, target = [], [], [], []
    for number in range(case.batch):
        search = searched(case, number)
        one = chosen(case, number, search)
        above = [-1, *(1 + one.index(search.above[node]) if search.above[node] >= 0 else 0 for node in one)]
        parents.append(search.parent_list)
        selected.append(one)
        tokens.append(_tokens(case, number, above))
        target.append(_target(case, number, above, tokens[-1]))
    return DraftTreeInputs(
        parent_list=torch.tensor(parents, dtype=torch.int64), selected_index=torch.tensor(selected),
        verified=torch.tensor([one.verified for one in case.requests]), candidates=torch.tensor(tokens),
        target_predict=torch.tensor(target), topk=case.topk, depth=case.depth, draft_token_num=case.draft_token_num,
        mask_mode=case.mask_mode,
    )  # fmt: skip


def _tokens(case: DraftTreeCase, number: int, above: Sequence[int]) -> list[int]:
    stream = Stream(case.seed, f"tokens of {number}")
    if case.tokens == "few":
        return stream.integers(0, 3, len(above))
    if case.tokens == "neighbours":
        first = FIRST_NEIGHBOURS[case.seed % len(FIRST_NEIGHBOURS)]
        return [first + one for one in stream.permutation(len(above))]
    tokens = [512 * one for one in stream.permutation(len(above))]
    if case.tokens == "equal siblings":
        for node in range(len(above)):
            elder = [one for one in range(1, node) if above[one] == above[node]]
            if len(elder) % 2:
                tokens[node] = tokens[elder[-1]]
    return tokens


def _target(case: DraftTreeCase, number: int, above: Sequence[int], tokens: Sequence[int]) -> list[int]:
    """What the target says behind each node: of those without a child that matches, a token from elsewhere."""
    count, matches = len(above), case.requests[number].matches
    stream = Stream(case.seed, f"target of {number}")
    which, others = stream.integers(0, 2**20, count), stream.integers(0, count, count)
    target = []
    for node in range(count):
        children = [other for other in range(count) if above[other] == node]
        place = {"first": 0, "last": -1, "random": which[node] % (len(children) + 1), "none": len(children)}[matches]
        if -len(children) <= place < len(children):
            target.append(tokens[children[place]])
        else:
            other = tokens[others[node]]
            target.append(NOT_DRAFTED if other in [tokens[child] for child in children] else other)
    return target


def coordinates(inputs: DraftTreeInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to the output: request, node, place on the way, column."""
    requests, count = inputs.candidates.shape
    request = torch.arange(requests)
    if output == "accepted":
        return {"request": request}
    if output == "accept_index":
        return {"request": request.unsqueeze(1), "place": torch.arange(inputs.depth + 1).unsqueeze(0)}
    if output in ("next_token", "next_sibling"):
        return {"request": request.unsqueeze(1), "node": torch.arange(count).unsqueeze(0)}
    if output != "mask":
        return {"request": request.repeat_interleave(count), "node": torch.arange(count).repeat(requests)}
    columns = count + (inputs.verified if inputs.mask_mode == "full" else torch.zeros_like(inputs.verified))
    rows = columns.repeat_interleave(count)
    return {
        "request": request.repeat_interleave(count).repeat_interleave(rows),
        "node": torch.arange(count).repeat(requests).repeat_interleave(rows),
        "column": torch.cat([torch.arange(one) for one in rows.tolist()]),
    }


_OF_REQUESTS = ("parent_list", "selected_index", "verified", "candidates", "target_predict")


def _of_requests(inputs: DraftTreeInputs, order: Sequence[int]) -> DraftTreeInputs:
    tensors = {name: getattr(inputs, name)[order] for name in _OF_REQUESTS}
    return replace(inputs, **tensors)


def _outputs_of(inputs: DraftTreeInputs, order: Sequence[int]) -> Callable[[Outputs], Outputs]:
    """Return what takes the outputs of some requests, in an order, and counts their nodes anew."""
    count = inputs.draft_token_num

    def taken(name: str, output: torch.Tensor) -> torch.Tensor:
        if name == "mask":
            sizes = [count * columns for columns in _columns(inputs)]
            parts = torch.split(output, sizes)
            return torch.cat([parts[one] for one in order])
        if name in ("positions", "predicted"):
            return output.view(-1, count)[order].flatten()
        if name != "accept_index":
            return output[order]
        shift = count * (torch.arange(len(order)) - torch.tensor(order)).unsqueeze(1)
        return torch.where(output[order] < 0, output[order], output[order] + shift).to(output.dtype)

    return lambda outputs: {name: taken(name, output) for name, output in outputs.items()}


def _columns(inputs: DraftTreeInputs) -> list[int]:
    full = inputs.mask_mode == "full"
    return [inputs.draft_token_num + (one if full else 0) for one in inputs.verified.tolist()]


def _other_order(inputs: DraftTreeInputs, case: DraftTreeCase) -> Changed[DraftTreeInputs]:
    """Requests in another order."""
    order = Stream(case.seed, "order").permutation(case.batch)
    return Changed(_of_requests(inputs, order), _outputs_of(inputs, order))


def _alone(inputs: DraftTreeInputs, case: DraftTreeCase) -> Changed[DraftTreeInputs]:
    """One of the requests without the others."""
    one = Stream(case.seed, "alone").integers(0, case.batch, 1)
    other = replace(case, requests=(case.requests[one[0]],))
    return Changed(_of_requests(inputs, one), _outputs_of(inputs, one), case=other)


def _drafts_only(inputs: DraftTreeInputs, case: DraftTreeCase) -> Changed[DraftTreeInputs]:
    """Masks without the columns of verified tokens."""
    count = inputs.draft_token_num

    def cut(outputs: Outputs) -> Outputs:
        if "mask" not in outputs:
            return outputs
        columns = _columns(inputs)
        parts = torch.split(outputs["mask"], [count * one for one in columns])
        drafts = [one.view(count, wide)[:, -count:].flatten() for one, wide in zip(parts, columns, strict=True)]
        return {**outputs, "mask": torch.cat(drafts)}

    return Changed(replace(inputs, mask_mode="qlen_only"), cut, case=replace(case, mask_mode="qlen_only"))


def _other_numbers(inputs: DraftTreeInputs, case: DraftTreeCase) -> DraftTreeInputs:
    """Parents of each step in another order, so that their children have other numbers; nodes are the same."""
    topk, first = case.topk, 1
    parent_list, selected = inputs.parent_list.clone(), inputs.selected_index.clone()
    orders = Stream(case.seed, "parents").permutations(max(1, case.depth - 1), topk)
    for order in torch.from_numpy(orders)[: case.depth - 1]:
        moved = torch.arange(parent_list.shape[1])
        moved[first : first + topk] = first + order.argsort()
        parent_list[:, first : first + topk] = parent_list[:, first : first + topk][:, order]
        selected = moved[selected // topk] * topk + selected % topk
        later = parent_list[:, first + topk :]
        parent_list[:, first + topk :] = moved[later // topk] * topk + later % topk
        first += topk
    return replace(inputs, parent_list=parent_list, selected_index=selected)


def _last_candidate(inputs: DraftTreeInputs) -> int:
    return int(inputs.selected_index[0, -1])


def _place_of_last_parent(inputs: DraftTreeInputs) -> int | None:
    """Where the first request says the parent of its last candidate; None if that is the root."""
    return _last_candidate(inputs) // inputs.topk or None


component = Component(
    name="draft_tree",
    summary="trees of drafted tokens: their links, positions and masks, and which nodes greedy verification accepts",
    case_type=DraftTreeCase,
    outputs=("positions", "next_token", "next_sibling", "mask", "accept_index", "accepted", "predicted"),
    inputs=build_inputs,
    reference=draft_tree,
    illegal=(
        wrong_element("a negative number of verified tokens", "verified", constant(-1)),
        wrong_element("a negative candidate", "selected_index", constant(-1)),
        wrong_element("a candidate beyond the search", "selected_index",
                      lambda inputs: inputs.topk + (inputs.depth - 1) * inputs.topk**2),
        wrong_element("a candidate that is selected twice", "selected_index", _last_candidate,
                      lambda inputs: 0 if inputs.draft_token_num > 2 else None),
        wrong_element("a parent that is not selected", "parent_list", constant(2**20), _place_of_last_parent),
        wrong_element("a candidate that is its own parent", "parent_list", _last_candidate, _place_of_last_parent),
    ),
    coordinates=coordinates,
    highlighted_region="branches",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _other_order,
                 within={"batch": range(2, 2**12 + 1)}),
        relation("a_request_alone", "a request's company does not matter", _alone,
                 within={"batch": range(2, 2**12 + 1)}),
        relation("modes_of_masks_agree", "verified columns are all that a mask of drafts lacks", _drafts_only,
                 within={"mask_mode": ("full",)}, needs={"mask_mode": ("qlen_only",)}),
        relation("numbers_of_candidates_do_not_matter", "the order of parents in a step does not matter",
                 _other_numbers, within={"depth": range(2, 33), "topk": range(2, 33)}),
    ),
    baselines=BASELINES["draft_tree"],
)  # fmt: skip
