"""Which tokens of a draft a target model accepts, and what comes in place of the first that it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import FLOAT32_ROUNDOFF, Expected
from npudiff.reference.views import moved_inputs

NOTHING = -1
"""What a row of the result is filled with, and a token that was not drafted."""

RULES = ("token by token", "any")
"""token by token: the rule of Leviathan et al., whose answer the random numbers determine. any: whatever gives the
target's distribution, such as the verification of whole blocks (Sun et al., "Block verification accelerates speculative
decoding", 2024); what a request that is not greedy gets out of the random numbers is then not said."""

QUOTIENT_ROUNDINGS = 4
"""Roundings of float32 by which a quotient of probabilities, or a difference over a random number, may be off."""


@dataclass(frozen=True)
class DraftAcceptanceInputs:
    """A step of a target model over the drafts of a batch; row ``t`` of all requests one after the other."""

    draft_tokens: torch.Tensor
    """int32 ``[rows]``; -1 for one that was not drafted, which is rejected."""
    target: torch.Tensor
    """float32 ``[rows, vocabulary]``: probabilities of the target model for the place of each drafted token, after
    temperature and filters. Of a greedy request the most likely token counts."""
    draft: torch.Tensor | None
    """float32 ``[rows, vocabulary]``: those of the draft model; None where drafts have no probabilities, as of n-grams,
    which counts as 1 for the token that was drafted."""
    bonus: torch.Tensor
    """int32 ``[requests]``: the token behind a draft that is accepted altogether."""
    uniform: torch.Tensor
    """float32 ``[rows]``, in [0, 1): a token is accepted if ``target / draft`` is at least that."""
    exponential: torch.Tensor
    """float32 ``[requests, vocabulary]``, above 0: the recovered token has the largest ``mass / exponential``."""
    greedy: torch.Tensor
    """bool ``[requests]``."""
    lengths: tuple[int, ...]
    """Drafted tokens of each request; 0 for one that has no draft."""
    room: int
    """Drafted tokens that the result has room for."""
    rule: str = "token by token"
    """One of ``RULES``: what decides whether a draft is accepted."""

    def to(self, device: str | torch.device) -> DraftAcceptanceInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def draft_acceptance(inputs: DraftAcceptanceInputs) -> dict[str, Expected]:
    """Return the tokens of each request: those that are accepted, and one more.

    Of a greedy request the target's most likely tokens, up to the first that is not the drafted one. Of any other the
    drafted tokens while they are accepted, and then one from what the draft is short of, ``max(target - draft, 0)``;
    without probabilities from the target without the drafted token. Behind a whole draft comes the bonus (Leviathan et
    al., "Fast inference from transformers via speculative decoding", 2023, algorithm 1; vLLM's rejection sampler). So
    the first token has the target's distribution, whatever the draft's is.

    Returns
    -------
    dict
        ``tokens``: int32 ``[requests, room + 1]``, filled with -1.

    Raises
    ------
    ValueError
        If shapes contradict each other.

    Notes
    -----
    By any other rule nothing is said of requests that have drafts and are not greedy; what must hold of them all the
    same, relations say.

    Where a quotient is nearer to its random number than float32 tells, nothing is said of the request from there on;
    nor of a recovered token whose mass over its random number is as near to another one's, or of one without any mass,
    nor of a greedy token that is not alone the most likely one.
    """
    _validate(inputs)
    tokens = torch.full((len(inputs.lengths), inputs.room + 1), NOTHING, dtype=torch.float64)
    bound = torch.zeros_like(tokens)
    start = 0
    for request, length in enumerate(inputs.lengths):
        row = Row(tokens[request], bound[request])
        if length and inputs.rule == "any" and not bool(inputs.greedy[request]):
            row.end_unsure()
        for place in range(length):
            if row.ended:
                break
            step = _greedy if bool(inputs.greedy[request]) else _random
            step(inputs, row, request, start + place)
        if not row.ended:
            row.add(float(inputs.bonus[request]))
        start += length
    return {"tokens": Expected(tokens, bound, torch.int32)}


class Row:
    """The tokens of one request, as far as they are known."""

    def __init__(self, tokens: torch.Tensor, bound: torch.Tensor) -> None:
        self._tokens, self._bound, self._place = tokens, bound, 0
        self.ended = False

    def add(self, token: float, *, last: bool = False) -> None:
        """Add a token."""
        self._tokens[self._place] = token
        self._place += 1
        self.ended = last

    def add_unsure(self) -> None:
        """Add a last token of which nothing is said."""
        self._bound[self._place] = torch.inf
        self.ended = True

    def end_unsure(self) -> None:
        """Say nothing from here on."""
        self._bound[self._place :] = torch.inf
        self.ended = True


def _greedy(inputs: DraftAcceptanceInputs, row: Row, request: int, place: int) -> None:
    del request
    target = inputs.target[place]
    best = (target == target.max()).nonzero().flatten()
    if len(best) > 1:
        row.end_unsure()
        return
    row.add(float(best[0]), last=int(best[0]) != int(inputs.draft_tokens[place]))


def _random(inputs: DraftAcceptanceInputs, row: Row, request: int, place: int) -> None:
    token, target = int(inputs.draft_tokens[place]), inputs.target[place].to(torch.float64)
    draft = None if inputs.draft is None else inputs.draft[place].to(torch.float64)
    if token != NOTHING:
        mass = 1.0 if draft is None else float(draft[token])
        quotient, least = float(target[token]) / mass if mass else 0.0, float(inputs.uniform[place])
        off = abs(quotient) * QUOTIENT_ROUNDINGS * FLOAT32_ROUNDOFF
        if mass and abs(quotient - least) <= off:
            row.end_unsure()
            return
        if mass and quotient > least:
            row.add(float(token))
            return
    left = target.clone() if draft is None else (target - draft).clamp(min=0.0)
    if draft is None and token != NOTHING:
        left[token] = 0.0
    size = left / inputs.exponential[request].to(torch.float64)
    order = size.argsort(descending=True)
    best = float(size[order[0]])
    second = float(size[order[1]]) if len(order) > 1 else -1.0
    # A difference of probabilities rounds relative to itself; what rounds to 0 on a device is not the largest.
    if not best or second >= best * (1 - 2 * QUOTIENT_ROUNDINGS * FLOAT32_ROUNDOFF):
        row.add_unsure()
        return
    row.add(float(order[0]), last=True)


def _validate(inputs: DraftAcceptanceInputs) -> None:
    rows, vocabulary = inputs.target.shape
    requests = len(inputs.lengths)
    wanted = {
        "draft_tokens": (rows,), "draft": (rows, vocabulary), "bonus": (requests,), "uniform": (rows,),
        "exponential": (requests, vocabulary), "greedy": (requests,),
    }  # fmt: skip
    for name, shape in wanted.items():
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")
    if bool(((inputs.draft_tokens < NOTHING) | (inputs.draft_tokens >= vocabulary)).any()):
        raise ValueError(f"drafted tokens lie in -1..{vocabulary - 1}")
    if inputs.rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}, got {inputs.rule!r}")
    if sum(inputs.lengths) != rows or max(inputs.lengths, default=0) > inputs.room:
        raise ValueError(f"lengths {inputs.lengths} are not of {rows} rows, of at most {inputs.room} each")
