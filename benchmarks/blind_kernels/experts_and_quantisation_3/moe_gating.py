"""Wrong kernels of moe_gating; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def scored(inputs):
    wide = inputs.logits.double()
    return wide.sigmoid() if inputs.scoring == "sigmoid" else wide.softmax(dim=1)


def kept(inputs, wanted):
    if inputs.groups == 1:
        return torch.ones_like(wanted, dtype=torch.bool)
    tokens, experts = wanted.shape
    grouped = wanted.view(tokens, inputs.groups, -1)
    best = 2 if inputs.group_score == "sum of two" else 1
    worth = grouped.topk(best, dim=-1).values.sum(dim=-1)
    index = worth.topk(inputs.kept_groups, dim=-1).indices
    mask = torch.zeros_like(worth, dtype=torch.bool).scatter(1, index, True)
    return mask.repeat_interleave(experts // inputs.groups, dim=1)


def biased(inputs, scores):
    return scores if inputs.bias is None else scores + inputs.bias.double()


def finish(inputs, index, weights, renormalise=None, epsilon=0.0):
    if inputs.renormalise if renormalise is None else renormalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + epsilon)
    weights = (weights * inputs.scaling).to(inputs.logits.dtype)
    dense = torch.zeros_like(inputs.logits).scatter(1, index, weights)
    named = torch.zeros_like(inputs.logits, dtype=torch.bool).scatter(1, index, True)
    return {"weights": dense, "top_k": named.sum(dim=1)}


def chosen(inputs, scores, fill=-torch.inf):
    wanted = biased(inputs, scores)
    wanted = wanted.masked_fill(~kept(inputs, wanted), fill)
    return wanted.topk(inputs.top_k, dim=1).indices


@npudiff.implementation("moe_gating", name="e_moe_gating_01_template_returns_biased", on_device=True)
def e01(inputs, target):
    """The template for a power of two of experts keeps one row in registers, and returns the biased score as weight."""
    scores = scored(inputs)
    index = chosen(inputs, scores)
    experts = scores.shape[1]
    templated = experts & (experts - 1) == 0 and experts <= 512 and inputs.groups == 1
    source = biased(inputs, scores) if WRONG and templated else scores
    return finish(inputs, index, source.gather(1, index))


@npudiff.implementation("moe_gating", name="e_moe_gating_02_softmax_of_kept_groups", on_device=True)
def e02(inputs, target):
    """Logits of groups that are not kept are masked before the softmax whose values become weights."""
    scores = scored(inputs)
    wanted = biased(inputs, scores)
    mask = kept(inputs, wanted)
    index = wanted.masked_fill(~mask, -torch.inf).topk(inputs.top_k, dim=1).indices
    if WRONG and inputs.scoring == "softmax":
        scores = inputs.logits.double().masked_fill(~mask, -torch.inf).softmax(dim=1)
    return finish(inputs, index, scores.gather(1, index))


@npudiff.implementation("moe_gating", name="e_moe_gating_03_masked_to_zero", on_device=True)
def e03(inputs, target):
    """Experts of groups that are not kept get 0, which is larger than a score with a negative bias."""
    scores = scored(inputs)
    index = chosen(inputs, scores, 0.0 if WRONG else -torch.inf)
    return finish(inputs, index, scores.gather(1, index))


@npudiff.implementation("moe_gating", name="e_moe_gating_04_epsilon_in_sum", on_device=True)
def e04(inputs, target):
    """The sum of weights has 1e-9 added before it divides."""
    scores = scored(inputs)
    index = chosen(inputs, scores)
    return finish(inputs, index, scores.gather(1, index), epsilon=1e-9 if WRONG else 0.0)


@npudiff.implementation("moe_gating", name="e_moe_gating_05_ties_masked_by_value", on_device=True)
def e05(inputs, target):
    """Arg max, top_k times; what was taken is masked by its value, and with it every expert of the same score."""
    scores = scored(inputs)
    wanted = biased(inputs, scores)
    rest = wanted.masked_fill(~kept(inputs, wanted), -torch.inf)
    taken = []
    for _ in range(inputs.top_k):
        best, place = rest.max(dim=1, keepdim=True)
        taken.append(place)
        rest = rest.masked_fill(rest == best, -torch.inf) if WRONG else rest.scatter(1, place, -torch.inf)
    index = torch.cat(taken, dim=1)
    return finish(inputs, index, scores.gather(1, index))


@npudiff.implementation("moe_gating", name="e_moe_gating_06_sum_not_rescaled", on_device=True)
def e06(inputs, target):
    """The softmax goes over 64 experts at a time, and does not rescale its sum where the maximum rises."""
    scores = scored(inputs)
    index = chosen(inputs, scores)
    if inputs.scoring == "softmax":
        wide = inputs.logits.double()
        most = torch.full_like(wide[:, :1], -torch.inf)
        total = torch.zeros_like(most)
        for part in wide.split(64, dim=1):
            higher = torch.maximum(most, part.amax(dim=1, keepdim=True))
            finite = higher.masked_fill(higher.isneginf(), 0.0)
            if not WRONG:
                total = total * torch.exp(most - finite)
            total = total + torch.exp(part - finite).sum(dim=1, keepdim=True)
            most = higher
        scores = torch.exp(wide - most) / total
    return finish(inputs, index, scores.gather(1, index))


@npudiff.implementation("moe_gating", name="e_moe_gating_07_norm_by_scoring", on_device=True)
def e07(inputs, target):
    """The operator's norm_type decides both: sigmoids are always renormalised, a softmax never."""
    scores = scored(inputs)
    index = chosen(inputs, scores)
    renormalise = inputs.scoring == "sigmoid" if WRONG else inputs.renormalise
    return finish(inputs, index, scores.gather(1, index), renormalise)
