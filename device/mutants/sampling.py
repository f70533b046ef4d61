"""Wrong filters of logits."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.sampling import (
    Outputs,
    allowed,
    apply_token_bitmask,
    before_filters,
    by_probability,
    counted,
    filtered_by_operator,
    filtered_by_sort,
    left,
    likely,
    npu_top_k_top_p,
    penalised,
    scaled,
    sorted_once,
    without_unlikely,
)
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction
from npudiff.reference.sampling import SamplingInputs

_LISTS = range(1, 4097)
_SEVERAL = range(2, 2**17 + 1)
_SOME_K = range(1, 2**18 + 1)


@perturbed(
    sorted_once,
    "vllm-project/vllm-ascend/pull/7769: lists are not updated while the next step is prepared",
    supports={"penalties": ("repetition", "frequency", "presence", "all"), "history": _LISTS},
)
def newest_token_unseen(inputs: SamplingInputs) -> SamplingInputs:
    """Penalise for all generated tokens but the newest."""
    if inputs.output is None:
        return inputs
    end = inputs.logits.shape[1]
    last = (inputs.output < end).sum(dim=1, keepdim=True) - 1
    return replace(inputs, output=inputs.output.scatter(1, last.clamp(min=0), end))


@mutant(
    sorted_once,
    "vllm-project/vllm-ascend/pull/10138: a grid of at most 65,535 programs",
    supports={"requests": range(2**16 + 1, 2**17 + 1)},
)
def requests_beyond_the_grid(inputs: SamplingInputs, target: Target) -> Outputs:
    """Leave requests beyond the grid as they came."""
    outputs = sorted_once(inputs, target)
    plain = left(inputs.logits.float())
    return {name: torch.cat([one[: 2**16 - 1], plain[name][2**16 - 1 :]]) for name, one in outputs.items()}


@perturbed(
    sorted_once,
    "sgl-project/sglang/pull/20989: the kernel of the mask does nothing on an NPU",
    supports={"grammar": ("half", "a word", "one token")},
)
def grammar_left_out(inputs: SamplingInputs) -> SamplingInputs:
    """Allow every token."""
    return replace(inputs, bitmask=None)


@perturbed(
    apply_token_bitmask,
    "vllm-project/vllm-ascend/pull/10858: masks in the order of guided requests, not of rows",
    supports={"requests": _SEVERAL},
)
def masks_of_other_rows(inputs: SamplingInputs) -> SamplingInputs:
    """Take the mask of the request before."""
    return inputs if inputs.bitmask is None else replace(inputs, bitmask=inputs.bitmask.roll(1, 0).contiguous())


@perturbed(
    apply_token_bitmask, "vllm-project/vllm-ascend/pull/6151: words of a mask have a sign, which is a token as well"
)
def highest_bit_is_a_sign(inputs: SamplingInputs) -> SamplingInputs:
    """Allow no token of the highest bit of a word."""
    return inputs if inputs.bitmask is None else replace(inputs, bitmask=inputs.bitmask & 0x7FFFFFFF)


@mutant(
    sorted_once,
    "vllm-project/vllm-ascend/pull/13847: a pivot that is searched for ends too early",
    supports={"top_p": (0.9, 0.5, 0.99), "top_k": (0,)},
)
def pivot_is_coarse(inputs: SamplingInputs, target: Target) -> Outputs:
    """Halve the range of logits eight times, and keep what is above the lower end."""
    logits = before_filters(inputs)
    if inputs.top_p is None:
        return left(logits)
    weights = logits.softmax(dim=1)
    high = logits.amax(dim=1)
    low = torch.where(logits > -torch.inf, logits, high.unsqueeze(1)).amin(dim=1)
    for _ in range(8):
        middle = (low + high) / 2
        enough = (weights * (logits >= middle.unsqueeze(1))).sum(dim=1) >= inputs.top_p
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return left(logits.masked_fill(logits < low.unsqueeze(1), -torch.inf))


@mutant(
    sorted_once,
    "vllm/v1/sample/ops/topk_topp_sampler.py 395: what is as likely as the last one stays",
    supports={"top_k": _SOME_K, "top_p": (1.0,)},
)
def ties_all_go(inputs: SamplingInputs, target: Target) -> Outputs:
    """Drop all tokens that are as likely as the last, if there are several of them."""
    logits = before_filters(inputs)
    if inputs.top_k is None:
        return left(logits)
    last = logits.sort(dim=1, descending=True).values.gather(1, inputs.top_k.long().unsqueeze(1) - 1)
    alike = logits == last
    too_many = (logits >= last).sum(dim=1, keepdim=True) > inputs.top_k.unsqueeze(1)
    return left(logits.masked_fill((logits < last) | (alike & too_many & (logits < logits.amax(1, True))), -torch.inf))


@perturbed(
    npu_top_k_top_p,
    "sglang/srt/sampling/sampling_batch_info.py 298: the operator is for k up to 1,024",
    supports={"vocabulary": range(1025, 2**18 + 1), "top_k": range(1025, 2**18 + 1)},
)
def most_is_1024(inputs: SamplingInputs) -> SamplingInputs:
    """Keep 1,024 tokens at most."""
    return inputs if inputs.top_k is None else replace(inputs, top_k=inputs.top_k.clamp(max=1024))


@mutant(
    by_probability,
    "vllm/v1/sample/ops/topk_topp_sampler.py 402: the token with which the share is reached stays",
    supports={"top_p": (0.9, 0.5, 0.99, 0.1)},
)
def share_is_not_reached(inputs: SamplingInputs, target: Target) -> Outputs:
    """Keep tokens as long as all of them together have less than the share."""
    logits = scaled(inputs, penalised(inputs, allowed(inputs)))
    probabilities = logits.softmax(dim=1)
    stays = likely(inputs, probabilities)
    if inputs.top_p is not None:
        ranked, index = probabilities.sort(dim=1, descending=True)
        inside = ranked.cumsum(dim=1) <= inputs.top_p.unsqueeze(1)
        inside[:, 0] = True
        stays &= torch.zeros_like(stays).scatter(1, index, inside)
    return left(logits.masked_fill(~stays, -torch.inf))


@mutant(
    sorted_once,
    "vllm/v1/sample/ops/topk_topp_sampler.py 404: the most likely token always stays",
    supports={"top_p": (0.0,), "vocabulary": range(2, 2**18 + 1)},
)
def nobody_is_left(inputs: SamplingInputs, target: Target) -> Outputs:
    """Drop every token where the share is 0."""
    outputs = sorted_once(inputs, target)
    if inputs.top_p is None:
        return outputs
    none = inputs.top_p == 0
    return {name: one.masked_fill(none.view(-1, *[1] * (one.dim() - 1)), 0) for name, one in outputs.items()}


@mutant(
    npu_top_k_top_p,
    "vllm/v1/sample/ops/topk_topp_sampler.py 396: the share is of what top-k leaves",
    supports={"top_k": _SOME_K, "top_p": (0.9, 0.5, 0.99, 0.1)},
)
def share_of_all(inputs: SamplingInputs, target: Target) -> Outputs:
    """Take both filters of all tokens, and leave what both leave."""
    logits = before_filters(inputs)
    one = filtered_by_operator(replace(inputs, top_k=None), logits)
    other = filtered_by_operator(replace(inputs, top_p=None), logits)
    return left(torch.minimum(one, other))


@mutant(
    sorted_once,
    "vllm/model_executor/layers/utils.py 88: presence is subtracted once, however often",
    supports={"penalties": ("presence", "all"), "history": range(2, 4097)},
)
def presence_by_count(inputs: SamplingInputs, target: Target) -> Outputs:
    """Subtract presence for each time that a token was generated."""
    logits = penalised(replace(inputs, presence=None), allowed(inputs))
    if inputs.presence is not None and inputs.output is not None:
        logits = logits - inputs.presence.unsqueeze(1) * counted(inputs.output, logits)
    return left(filtered_by_sort(inputs, without_unlikely(inputs, scaled(inputs, logits))))


@mutant(
    sorted_once,
    "vllm/_custom_ops.py 321: a logit below 0 is multiplied; divided, it becomes more likely",
    supports={"penalties": ("repetition",), "history": _LISTS},
)
def negative_logits_divided(inputs: SamplingInputs, target: Target) -> Outputs:
    """Divide all logits of tokens that were seen."""
    logits = allowed(inputs)
    if inputs.repetition is not None and inputs.output is not None and inputs.prompt is not None:
        seen = (counted(inputs.output, logits) + counted(inputs.prompt, logits)) > 0
        logits = torch.where(seen, logits / inputs.repetition.unsqueeze(1), logits)
    return left(filtered_by_sort(inputs, without_unlikely(inputs, scaled(inputs, logits))))


@perturbed(
    sorted_once,
    "vllm/_custom_ops.py 319: repetition is of prompt and output",
    supports={"penalties": ("repetition", "all"), "history": _LISTS},
)
def prompt_unseen(inputs: SamplingInputs) -> SamplingInputs:
    """Penalise for the output only."""
    return (
        inputs
        if inputs.prompt is None
        else replace(inputs, prompt=torch.full_like(inputs.prompt, inputs.logits.shape[1]))
    )


@perturbed(
    sorted_once,
    "vllm/v1/sample/ops/penalties.py 29: lists are filled with a token that is none",
    supports={"penalties": ("repetition", "frequency", "presence", "all"), "history": _LISTS, "requests": _SEVERAL},
)
def filling_is_the_last_token(inputs: SamplingInputs) -> SamplingInputs:
    """Take what fills lists for the last token."""
    last = inputs.logits.shape[1] - 1
    lists = {name: one.clamp(max=last) for name in ("prompt", "output") if (one := getattr(inputs, name)) is not None}
    return replace(inputs, **lists)


@perturbed(
    sorted_once,
    "vllm/v1/sample/sampler.py 236: a greedy request's logits stay as they are",
    supports={"temperature": (0.0,)},
)
def greedy_is_cold(inputs: SamplingInputs) -> SamplingInputs:
    """Divide the logits of greedy requests by a small temperature."""
    return inputs if inputs.temperature is None else replace(inputs, temperature=inputs.temperature.clamp(min=1e-4))


@mutant(
    sorted_once,
    "vllm/v1/sample/logits_processor/builtin.py 111: min-p is of the largest probability",
    supports={"min_p": (0.02, 0.3)},
)
def min_p_is_absolute(inputs: SamplingInputs, target: Target) -> Outputs:
    """Drop tokens whose probability is less than min-p, but for the most likely one."""
    logits = scaled(inputs, penalised(inputs, allowed(inputs)))
    if inputs.min_p is not None:
        gone = (logits.softmax(dim=1) < inputs.min_p.unsqueeze(1)) & (logits < logits.amax(dim=1, keepdim=True))
        logits = logits.masked_fill(gone, -torch.inf)
    return left(filtered_by_sort(inputs, logits))


@mutant(
    sorted_once,
    "vllm/v1/sample/sampler.py 272: temperature comes before the filters",
    supports={"temperature": (0.7, 1.6, 0.05), "top_p": (0.9, 0.5, 0.99)},
)
def temperature_comes_last(inputs: SamplingInputs, target: Target) -> Outputs:
    """Filter first, and divide what is left."""
    logits = without_unlikely(inputs, penalised(inputs, allowed(inputs)))
    return left(scaled(inputs, filtered_by_sort(inputs, logits)))


@perturbed(
    npu_top_k_top_p,
    "vllm/v1/sample/ops/topk_topp_sampler.py 393: each request has a k of its own",
    supports={"requests": _SEVERAL, "top_k": _SOME_K, "mixed": (True,)},
)
def k_of_the_first_request(inputs: SamplingInputs) -> SamplingInputs:
    """Give all requests the k of the first."""
    return (
        inputs if inputs.top_k is None else replace(inputs, top_k=inputs.top_k[:1].expand_as(inputs.top_k).contiguous())
    )


@perturbed(
    sorted_once,
    "vllm-project/vllm-ascend/pull/14337: random numbers are those of somebody else",
    supports={"draws": (True,), "requests": range(2, 2**17)},
)
def noise_of_another_request(inputs: SamplingInputs) -> SamplingInputs:
    """Give each request the random numbers of the one before it."""
    return replace(inputs, exponential=None if inputs.exponential is None else inputs.exponential.roll(1, 0))


@mutant(
    sorted_once,
    "vllm-ascend sample/sampler.py 159: requests that take the most likely token draw one too",
    supports={"draws": (True,), "temperature": (0.0,)},
)
def greedy_requests_draw(inputs: SamplingInputs, target: Target) -> Outputs:
    """Draw for all."""
    outputs = dict(sorted_once(inputs, target))
    logits = torch.where(outputs["kept"] > 0, outputs["logits"], -torch.inf)
    if inputs.exponential is not None:
        outputs["token"] = (logits.softmax(dim=1) / inputs.exponential).argmax(dim=1)
    return outputs


@mutant(
    sorted_once,
    "vllm-ascend sample/sampler.py 44: probabilities are multiplied by random numbers",
    supports={"draws": (True,), "temperature": (1.0, 0.7, 1.6)},
)
def multiplied_by_noise(inputs: SamplingInputs, target: Target) -> Outputs:
    """Take the largest product, which is no sample."""
    turned = None if inputs.exponential is None else 1 / inputs.exponential
    return sorted_once(replace(inputs, exponential=turned), target)


@perturbed(
    sorted_once,
    "vllm v1/sample/ops/bad_words.py 25: what a word begins with is not looked at",
    supports={"bad_words": ("begun",)},
)
def ends_of_bad_words(inputs: SamplingInputs) -> SamplingInputs:
    """Forbid the last token of each word."""
    return replace(inputs, bad_words=tuple(tuple(word[-1:] for word in words) for words in inputs.bad_words))


@perturbed(
    sorted_once,
    "vllm v1/sample/ops/bad_words.py 19: only words of one token are forbidden",
    supports={"bad_words": ("begun",), "history": range(1, 4097)},
)
def bad_words_of_one_token(inputs: SamplingInputs) -> SamplingInputs:
    """Leave out words of several tokens."""
    return replace(
        inputs, bad_words=tuple(tuple(word for word in words if len(word) == 1) for words in inputs.bad_words)
    )


@perturbed(
    sorted_once,
    "vllm v1/sample/ops/bad_words.py 36: words are those of the first request",
    supports={"bad_words": ("single", "begun"), "requests": range(2, 257)},
)
def bad_words_of_the_first_request(inputs: SamplingInputs) -> SamplingInputs:
    """Give all requests the words of the first."""
    return replace(inputs, bad_words=inputs.bad_words[:1] * len(inputs.bad_words))


@mutant(
    sorted_once,
    "vllm-ascend worker/model_runner_v1.py 2244: the mask of a grammar is the one that the dummy run had",
    supports={"grammar": ("half", "a word", "one token")},
    stateful=True,
    graph=True,
)
def grammar_of_the_capture() -> ImplementationFunction[SamplingInputs, Outputs]:
    """Keep the words of a mask."""
    return keeping(sorted_once, "bitmask")
