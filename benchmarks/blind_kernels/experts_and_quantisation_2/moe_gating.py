"""Wrong kernels of moe_gating; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _scores(inputs):
    logits = inputs.logits.double()
    return torch.sigmoid(logits) if inputs.scoring == "sigmoid" else torch.softmax(logits, dim=1)


def _biased(inputs, scores):
    return scores if inputs.bias is None else scores + inputs.bias.double()


def _in_groups(inputs, wanted, fill=-torch.inf):
    """Wanted scores with everything outside of the best groups at ``fill``."""
    if inputs.groups == 1:
        return wanted
    grouped = wanted.reshape(len(wanted), inputs.groups, -1)
    best = 2 if inputs.group_score == "sum of two" else 1
    worth = grouped.topk(best, dim=2).values.sum(dim=2)
    kept = torch.zeros_like(worth, dtype=torch.bool)
    kept.scatter_(1, worth.topk(inputs.kept_groups, dim=1).indices, True)
    return wanted.masked_fill(~kept.repeat_interleave(grouped.shape[2], dim=1), fill)


def _weights(inputs, chosen):
    if inputs.renormalise:
        chosen = chosen / chosen.sum(dim=1, keepdim=True)
    return chosen * inputs.scaling


def _outputs(inputs, index, weights):
    dense = torch.zeros(inputs.logits.shape, dtype=torch.float64, device=inputs.logits.device)
    named = torch.zeros_like(dense, dtype=torch.bool)
    dense.scatter_(1, index, weights)
    named.scatter_(1, index, True)
    return {"weights": dense.to(inputs.logits.dtype), "top_k": named.sum(dim=1)}


@npudiff.implementation("moe_gating", name="d_moe_gating_01_bias_on_logits", on_device=True)
def d01(inputs, target):
    """The bias is added to the logits in front of the scoring function, and so is in scores and weights."""
    if WRONG and inputs.bias is not None:
        logits = inputs.logits.double() + inputs.bias.double()
        scores = torch.sigmoid(logits) if inputs.scoring == "sigmoid" else torch.softmax(logits, dim=1)
        wanted = scores
    else:
        scores = _scores(inputs)
        wanted = _biased(inputs, scores)
    index = _in_groups(inputs, wanted).topk(inputs.top_k, dim=1).indices
    return _outputs(inputs, index, _weights(inputs, scores.gather(1, index)))


@npudiff.implementation("moe_gating", name="d_moe_gating_02_ranks_in_bfloat16", on_device=True)
def d02(inputs, target):
    """Scores and bias are added and ranked in bfloat16, whatever the dtype of the logits is; equal ones go by index."""
    scores = _scores(inputs)
    wanted = _biased(inputs, scores)
    if WRONG:
        wanted = _biased(inputs, scores.bfloat16().double()).bfloat16().double()
    masked = _in_groups(inputs, wanted)
    if WRONG:
        index = torch.sort(masked, dim=1, descending=True, stable=True).indices[:, : inputs.top_k]
    else:
        index = masked.topk(inputs.top_k, dim=1).indices
    return _outputs(inputs, index, _weights(inputs, scores.gather(1, index)))


@npudiff.implementation("moe_gating", name="d_moe_gating_03_scaling_cancels", on_device=True)
def d03(inputs, target):
    """The scaling factor is applied to the chosen scores before these are renormalised, which takes it out again."""
    scores = _scores(inputs)
    index = _in_groups(inputs, _biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    chosen = scores.gather(1, index)
    if WRONG:
        weights = chosen * inputs.scaling
        if inputs.renormalise:
            weights = weights / weights.sum(dim=1, keepdim=True)
    else:
        weights = _weights(inputs, chosen)
    return _outputs(inputs, index, weights)


@npudiff.implementation("moe_gating", name="d_moe_gating_04_padded_lanes_in_softmax", on_device=True)
def d04(inputs, target):
    """Experts are padded to whole repeats of 64 lanes with zeros, which are in the sum of the softmax."""
    if inputs.scoring == "softmax":
        logits = inputs.logits.double()
        lanes = -logits.shape[1] % 64
        fill = 0.0 if WRONG else -torch.inf
        scores = torch.softmax(torch.nn.functional.pad(logits, (0, lanes), value=fill), dim=1)[:, : logits.shape[1]]
    else:
        scores = _scores(inputs)
    index = _in_groups(inputs, _biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    return _outputs(inputs, index, _weights(inputs, scores.gather(1, index)))


@npudiff.implementation("moe_gating", name="d_moe_gating_05_other_groups_at_zero", on_device=True)
def d05(inputs, target):
    """Experts of groups that are not kept are ranked as 0, and not as minus infinity."""
    scores = _scores(inputs)
    wanted = _in_groups(inputs, _biased(inputs, scores), 0.0 if WRONG else -torch.inf)
    index = wanted.topk(inputs.top_k, dim=1).indices
    return _outputs(inputs, index, _weights(inputs, scores.gather(1, index)))


@npudiff.implementation("moe_gating", name="d_moe_gating_06_one_expert_is_not_renormalised", on_device=True)
def d06(inputs, target):
    """Weights are renormalised only where there is more than one expert of a token."""
    scores = _scores(inputs)
    index = _in_groups(inputs, _biased(inputs, scores)).topk(inputs.top_k, dim=1).indices
    weights = scores.gather(1, index)
    if inputs.renormalise and (not WRONG or inputs.top_k > 1):
        weights = weights / weights.sum(dim=1, keepdim=True)
    return _outputs(inputs, index, weights * inputs.scaling)


@npudiff.implementation("moe_gating", name="d_moe_gating_07_number_in_the_mantissa", on_device=True)
def d07(inputs, target):
    """Ranked as one word of 32 bits, in which the expert's number stands in place of the last bits of the score."""
    scores = _scores(inputs)
    wanted = _in_groups(inputs, _biased(inputs, scores))
    if WRONG:
        experts = wanted.shape[1]
        room = max(1, (experts - 1).bit_length())
        bits = wanted.float().view(torch.int32).long()
        rising = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
        number = torch.arange(experts, device=wanted.device)
        key = (rising >> room << room) + (2**room - 1 - number)
        index = key.topk(inputs.top_k, dim=1).indices
    else:
        index = wanted.topk(inputs.top_k, dim=1).indices
    return _outputs(inputs, index, _weights(inputs, scores.gather(1, index)))
