"""Wrong moe_gating kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def dense(inputs, weights, index):
    result = torch.zeros_like(inputs.logits).scatter_add(1, index.long(), weights.to(inputs.logits.dtype))
    named = torch.zeros(inputs.logits.shape, dtype=torch.bool).scatter(1, index.long(), value=True)
    return {"weights": result, "top_k": named.sum(dim=1)}


def scores_of(inputs, logits=None):
    logits = inputs.logits.float() if logits is None else logits
    return torch.sigmoid(logits) if inputs.scoring == "sigmoid" else torch.softmax(logits, dim=1)


def biased(inputs, scores):
    return scores if inputs.bias is None else scores + inputs.bias.float()


def masked(inputs, wanted, hidden=-torch.inf, mode=None):
    if inputs.groups == 1:
        return wanted
    mode = inputs.group_score if mode is None else mode
    grouped = wanted.view(len(wanted), inputs.groups, -1)
    worth = grouped.topk(2, dim=2).values.sum(dim=2) if mode == "sum of two" else grouped.amax(dim=2)
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept.scatter_(1, worth.topk(inputs.kept_groups, dim=1).indices, value=True)
    return wanted.masked_fill(~kept.repeat_interleave(grouped.shape[2], dim=1), hidden)


def weighted(inputs, weights, eps=0.0):
    if inputs.renormalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + eps)
    return weights * inputs.scaling


def finish(inputs, scores, wanted, **changes):
    index = wanted.topk(inputs.top_k, dim=1).indices
    return dense(inputs, weighted(inputs, scores.gather(1, index), **changes), index)


@npudiff.implementation("moe_gating", name="b_gating_01_bias_in_weights_at_128_8", on_device=True)
def b01(inputs, target):
    """Kernels by numbers of experts; 128 and 8 have one of their own."""
    scores = scores_of(inputs)
    wanted = biased(inputs, scores)
    if WRONG and inputs.logits.shape[1] == 128 and inputs.top_k == 8:
        scores = wanted
    return finish(inputs, scores, masked(inputs, wanted))


@npudiff.implementation("moe_gating", name="b_gating_02_hidden_groups_are_zero", on_device=True)
def b02(inputs, target):
    """Groups that are left out are masked."""
    scores = scores_of(inputs)
    return finish(inputs, scores, masked(inputs, biased(inputs, scores), 0.0 if WRONG else -torch.inf))


@npudiff.implementation("moe_gating", name="b_gating_03_argmax_from_minus_one", on_device=True)
def b03(inputs, target):
    """One argmax after the other, from a sentinel."""
    scores = scores_of(inputs)
    wanted = masked(inputs, biased(inputs, scores)).clone()
    rows, index = torch.arange(len(wanted)), []
    for _ in range(inputs.top_k):
        value, best = wanted.max(dim=1)
        if WRONG:
            best = torch.where(value > -1.0, best, 0)
        index.append(best)
        wanted[rows, best] = -torch.inf
    index = torch.stack(index, dim=1)
    return dense(inputs, weighted(inputs, scores.gather(1, index)), index)


@npudiff.implementation("moe_gating", name="b_gating_04_scaling_inside_renormalise", on_device=True)
def b04(inputs, target):
    """Renormalise, and scale."""
    scores = scores_of(inputs)
    index = masked(inputs, biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    weights = scores.gather(1, index)
    if inputs.renormalise:
        weights = weights / weights.sum(dim=1, keepdim=True)
        weights = weights * inputs.scaling
    elif not WRONG:
        weights = weights * inputs.scaling
    return dense(inputs, weights, index)


@npudiff.implementation("moe_gating", name="b_gating_05_epsilon", on_device=True)
def b05(inputs, target):
    """The sum of weights is kept away from 0."""
    scores = scores_of(inputs)
    return finish(inputs, scores, masked(inputs, biased(inputs, scores)), eps=1e-6 if WRONG else 0.0)


@npudiff.implementation("moe_gating", name="b_gating_06_two_best_only_with_bias", on_device=True)
def b06(inputs, target):
    """Groups are worth their two best where there is a bias."""
    scores = scores_of(inputs)
    mode = "largest" if WRONG and inputs.bias is None else inputs.group_score
    return finish(inputs, scores, masked(inputs, biased(inputs, scores), mode=mode))


@npudiff.implementation("moe_gating", name="b_gating_07_exp_without_max", on_device=True)
def b07(inputs, target):
    """Softmax in one pass."""
    scores = scores_of(inputs)
    if WRONG and inputs.scoring == "softmax":
        exponentials = inputs.logits.float().exp()
        scores = exponentials / exponentials.sum(dim=1, keepdim=True)
        scores = torch.where(scores.isnan(), 0.0, scores)
    return finish(inputs, scores, masked(inputs, biased(inputs, scores)))


@npudiff.implementation("moe_gating", name="b_gating_08_biased_in_model_dtype", on_device=True)
def b08(inputs, target):
    """The sum of scores and bias."""
    scores = scores_of(inputs)
    wanted = biased(inputs, scores)
    if WRONG and inputs.bias is not None:
        wanted = (scores.to(inputs.bias.dtype) + inputs.bias).float()
    return finish(inputs, scores, masked(inputs, wanted))


@npudiff.implementation("moe_gating", name="b_gating_09_padding_in_the_sum", on_device=True)
def b09(inputs, target):
    """Experts are padded to a power of two."""
    logits = inputs.logits.float()
    experts = logits.shape[1]
    if not WRONG or inputs.scoring != "softmax":
        scores = scores_of(inputs)
    else:
        spare = (1 << (experts - 1).bit_length()) - experts
        scores = torch.softmax(torch.nn.functional.pad(logits, (0, spare)), dim=1)[:, :experts]
    return finish(inputs, scores, masked(inputs, biased(inputs, scores)))


@npudiff.implementation("moe_gating", name="b_gating_10_first_256_experts", on_device=True)
def b10(inputs, target):
    """256 experts fit a workspace."""
    scores = scores_of(inputs)
    wanted = masked(inputs, biased(inputs, scores))
    if WRONG and wanted.shape[1] > 256 and inputs.groups == 1 and inputs.top_k <= 256:
        wanted = wanted.clone()
        wanted[:, 256:] = -torch.inf
    return finish(inputs, scores, wanted)


@npudiff.implementation("moe_gating", name="b_gating_11_eight_in_registers", on_device=True)
def b11(inputs, target):
    """The chosen ones stand in eight registers; the sum is taken over them."""
    scores = scores_of(inputs)
    index = masked(inputs, biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    weights = scores.gather(1, index)
    if inputs.renormalise:
        weights = weights / weights[:, : 8 if WRONG else None].sum(dim=1, keepdim=True)
    return dense(inputs, weights * inputs.scaling, index)


@npudiff.implementation("moe_gating", name="b_gating_12_ties_cleared_by_value", on_device=True)
def b12(inputs, target):
    """One argmax after the other; what was taken is cleared."""
    scores = scores_of(inputs)
    wanted = masked(inputs, biased(inputs, scores)).clone()
    rows, index = torch.arange(len(wanted)), []
    for _ in range(inputs.top_k):
        value, best = wanted.max(dim=1)
        index.append(best)
        if WRONG:
            wanted = torch.where(wanted == value.unsqueeze(1), -torch.inf, wanted)
        else:
            wanted[rows, best] = -torch.inf
    index = torch.stack(index, dim=1)
    return dense(inputs, weighted(inputs, scores.gather(1, index)), index)


@npudiff.implementation("moe_gating", name="b_gating_13_groups_of_a_warp", on_device=True)
def b13(inputs, target):
    """Each lane holds 32 experts of a group at most."""
    scores = scores_of(inputs)
    wanted = biased(inputs, scores)
    if WRONG and inputs.groups > 1 and wanted.shape[1] // inputs.groups > 32 and inputs.top_k <= 32 * inputs.kept_groups:
        size = wanted.shape[1] // inputs.groups
        wanted = wanted.masked_fill(torch.arange(wanted.shape[1]) % size >= 32, -torch.inf)
    return finish(inputs, scores, masked(inputs, wanted))


@npudiff.implementation("moe_gating", name="b_gating_14_one_token_sums_all_scores", on_device=True)
def b14(inputs, target):
    """Single tokens renormalise by the sum of all scores, which is 1 after a softmax."""
    scores = scores_of(inputs)
    index = masked(inputs, biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    weights = scores.gather(1, index)
    if inputs.renormalise:
        alone = WRONG and len(weights) == 1
        weights = weights / (scores if alone else weights).sum(dim=1, keepdim=True)
    return dense(inputs, weights * inputs.scaling, index)
