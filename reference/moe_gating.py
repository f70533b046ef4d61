"""Which experts a token goes to, and with what weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import EXPONENTIAL_ERROR, FLOAT32_ROUNDOFF, Expected, accumulation_error, exactly
from npudiff.reference.inexact import Inexact, sigmoid, softplus, sqrt
from npudiff.reference.views import moved_inputs

SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
GROUP_SCORES = ("sum of two", "largest")
"""sum of two: a group is worth its two best experts together. largest: its best one."""


GUARD = 1e-20
"""What models (DeepSeek-V3) and the operator (``eps``) add to a sum of weights so that it is not 0: it is seen where an
expert with a bias is chosen whose score is about as small."""


@dataclass(frozen=True)
class MoeGatingInputs:
    """The router's logits, and how experts are chosen from them."""

    logits: torch.Tensor
    """``[tokens, experts]``, float32, bfloat16 or float16."""
    bias: torch.Tensor | None
    """``[experts]`` of the dtype of ``logits``: added to the scores for the choice, and not to the weights."""
    top_k: int
    """Experts of a token."""
    scoring: str = "softmax"
    """One of ``SCORINGS``; ``sqrtsoftplus`` is the root of ``log(1 + exp(x))``."""
    groups: int = 1
    kept_groups: int = 1
    """Groups of experts that lie next to each other, and of how many of them the experts are taken."""
    group_score: str = "sum of two"
    """One of ``GROUP_SCORES``."""
    renormalise: bool = False
    """Whether the weights of a token add up to 1 before they are scaled."""
    scaling: float = 1.0
    """Factor of all weights."""

    def to(self, device: str | torch.device) -> MoeGatingInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def moe_gating(inputs: MoeGatingInputs) -> dict[str, Expected]:
    """Return the weight of every expert for every token: 0 for those that are not chosen.

    With scores ``s`` (softmax over all experts, or sigmoids): the ``top_k`` experts of the largest ``s + bias`` among
    those of the best groups, with weights ``s / sum(s)`` or ``s``, times ``scaling`` (Shazeer et al., "Outrageously
    large neural networks", 2017; with bias and groups DeepSeek-V3, 2024, eqs. 12 to 16).

    Which experts were chosen does not depend on the order in which they are named, so weights are compared as a matrix.

    Returns
    -------
    dict
        ``weights``: ``[tokens, experts]`` of the dtype of ``logits``. ``top_k``: int64 ``[tokens]``, how many experts
        a token has, no two of them the same.

    Raises
    ------
    ValueError
        If sizes contradict each other, or a word is not known.

    Notes
    -----
    A correct device computes scores in float32, and may add up to ``GUARD`` to the sum by which weights are divided.
    Where two experts, or two groups, are so close that it may rank them either way, nothing is said of the weights of
    this token.
    """
    choice = chosen_experts(inputs, Inexact.exact(inputs.logits))
    weights = choice.weights.rounded(inputs.logits.dtype)
    dense = torch.zeros(inputs.logits.shape, dtype=torch.float64).scatter(1, choice.experts, weights.value)
    bound = torch.zeros_like(dense).scatter(1, choice.experts, weights.error)
    bound = bound.masked_fill(choice.unsure.unsqueeze(1), torch.inf)
    return {
        "weights": Expected(dense, bound, inputs.logits.dtype),
        "top_k": exactly(torch.full((len(inputs.logits),), inputs.top_k)),
    }


@dataclass(frozen=True)
class Choice:
    """The experts of every token."""

    experts: torch.Tensor
    """int64 ``[tokens, top_k]``."""
    weights: Inexact
    """``[tokens, top_k]``, before they are stored."""
    unsure: torch.Tensor
    """bool ``[tokens]``: a correct device may choose others."""


def chosen_experts(inputs: MoeGatingInputs, logits: Inexact) -> Choice:
    """Choose experts as ``moe_gating`` says, from logits that a device has with errors.

    Parameters
    ----------
    inputs : MoeGatingInputs
        How to choose; of its logits only the shape counts.
    logits : Inexact
        ``[tokens, experts]``.

    Raises
    ------
    ValueError
        If sizes contradict each other, or a word is not known.
    """
    _validate(inputs)
    scores = _scores(inputs, logits)
    wanted = scores if inputs.bias is None else scores.plus(Inexact.exact(inputs.bias)).in_float32()
    kept, unsure = _kept(inputs, wanted)
    value = wanted.value.masked_fill(~kept, -torch.inf)
    index = value.topk(inputs.top_k, dim=-1).indices
    unsure |= _too_close(value, wanted.error, inputs.top_k)
    weights = Inexact(scores.value.gather(1, index), scores.error.gather(1, index))
    return Choice(index, _scaled(inputs, weights), unsure)


def _scores(inputs: MoeGatingInputs, logits: Inexact) -> Inexact:
    if inputs.scoring == "sigmoid":
        return sigmoid(logits)
    if inputs.scoring == "sqrtsoftplus":
        return sqrt(softplus(logits))
    value = torch.softmax(logits.value, dim=-1)
    relative = 2 * EXPONENTIAL_ERROR + accumulation_error(value.shape[-1]) + 2 * FLOAT32_ROUNDOFF
    moved = torch.expm1(logits.error + logits.error.amax(dim=-1, keepdim=True))  # its exponential, and their sum
    return Inexact(value, value * ((1 + relative) * (1 + moved) - 1) + torch.finfo(torch.float32).tiny)


def _kept(inputs: MoeGatingInputs, wanted: Inexact) -> tuple[torch.Tensor, torch.Tensor]:
    """Which experts are in a group that is kept, ``[tokens, experts]``, and which tokens may have others kept."""
    tokens, experts = wanted.value.shape
    if inputs.groups == 1:
        return torch.ones(tokens, experts, dtype=torch.bool), torch.zeros(tokens, dtype=torch.bool)
    grouped = wanted.value.view(tokens, inputs.groups, -1)
    best = 2 if inputs.group_score == "sum of two" else 1
    worth = grouped.topk(best, dim=-1).values.sum(dim=-1)
    error = best * wanted.error.view(tokens, inputs.groups, -1).amax(dim=-1) + worth.abs() * FLOAT32_ROUNDOFF
    index = worth.topk(inputs.kept_groups, dim=-1).indices
    kept = torch.zeros_like(worth, dtype=torch.bool).scatter(1, index, value=True)
    return kept.repeat_interleave(experts // inputs.groups, dim=1), _too_close(worth, error, inputs.kept_groups)


def _too_close(value: torch.Tensor, error: torch.Tensor, count: int) -> torch.Tensor:
    """Rows in which the last that is taken and the first that is not may change places."""
    if count == value.shape[1]:
        return torch.zeros(len(value), dtype=torch.bool)
    ranked, order = value.sort(dim=-1, descending=True)
    last, first = (ranked[:, place] for place in (count - 1, count))
    reach = error.gather(1, order)[:, count - 1] + error.amax(dim=-1)
    return last - first <= reach


def _scaled(inputs: MoeGatingInputs, weights: Inexact) -> Inexact:
    if inputs.renormalise:
        total = Inexact(weights.value.sum(dim=-1, keepdim=True), weights.error.sum(dim=-1, keepdim=True) + GUARD)
        weights = weights.over(total.in_float32(inputs.top_k)).in_float32()
    return weights.times(inputs.scaling).in_float32(2)


def _validate(inputs: MoeGatingInputs) -> None:
    experts = inputs.logits.shape[-1]
    if inputs.scoring not in SCORINGS or inputs.group_score not in GROUP_SCORES:
        raise ValueError(f"no scoring {inputs.scoring} or group score {inputs.group_score}")
    if inputs.bias is not None and tuple(inputs.bias.shape) != (experts,):
        raise ValueError(f"bias must be [{experts}], got {list(inputs.bias.shape)}")
    if inputs.groups < 1 or experts % inputs.groups or not 1 <= inputs.kept_groups <= inputs.groups:
        raise ValueError(f"{inputs.kept_groups} of {inputs.groups} groups cannot be kept of {experts} experts")
    room = experts // inputs.groups * inputs.kept_groups
    if not 1 <= inputs.top_k <= room:
        raise ValueError(f"top_k must lie in 1..{room}, got {inputs.top_k}")
    if inputs.groups > 1 and inputs.group_score == "sum of two" and experts // inputs.groups < 2:
        raise ValueError("groups of one expert have no two")
