"""What a sampler draws from, as vllm-ascend and sglang compute it on Ascend: an operator, or sorts in plain torch."""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.reference.sampling import SamplingInputs

Outputs = dict[str, torch.Tensor]

GREEDY = 1e-5
"""Below this temperature a request takes its most likely token (vllm, ``v1/sample/sampler.py``)."""

_SURVIVORS, _ALL = {"mass": ("survivors",)}, {"mass": ("all",)}
_CONTIGUOUS = {"rows": ("contiguous",)}


def left(logits: torch.Tensor) -> Outputs:
    """Return which tokens are left, their logits, and how many they are."""
    kept = logits > -torch.inf
    return {"kept": kept.to(torch.int8), "logits": logits.masked_fill(~kept, 0.0), "count": kept.sum(dim=1)}


def drawn(inputs: SamplingInputs, logits: torch.Tensor) -> Outputs:
    """Return what is left, and the token that is drawn of it: each has its probability over a random number."""
    if inputs.exponential is None:
        return left(logits)
    most = (logits.softmax(dim=1) / inputs.exponential).argmax(dim=1)
    if inputs.temperature is not None:
        most = torch.where(inputs.temperature < GREEDY, logits.argmax(dim=1), most)
    return {**left(logits), "token": most}


def without_bad_words(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits of tokens that complete no bad word; numbers of words go into kernels, and none is read on the host."""
    if not inputs.bad_words:
        return logits
    logits = logits.clone()
    output = logits.new_zeros(len(logits), 1).long() if inputs.output is None else inputs.output
    counts = (output < logits.shape[1]).sum(dim=1) if inputs.output is not None else output[:, 0]
    for request, words in enumerate(inputs.bad_words):
        for word in words:
            begun = counts[request] >= len(word) - 1
            for back, token in enumerate(word[-2::-1], 1):
                place = (counts[request] - back).clamp(min=0)
                begun = begun & (output[request].gather(0, place.unsqueeze(0))[0] == token)
            logits[request, word[-1]] = torch.where(begun, -torch.inf, logits[request, word[-1]])
    return logits


def allowed(inputs: SamplingInputs) -> torch.Tensor:
    """Logits in float32, without the tokens that a grammar does not allow, or that complete a bad word."""
    logits = without_bad_words(inputs, inputs.logits.float())
    if inputs.bitmask is None:
        return logits
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    words = (inputs.bitmask.unsqueeze(-1) >> bits) & 1
    return logits.masked_fill(words.flatten(1)[:, : logits.shape[1]] == 0, -torch.inf)


def penalised(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits after penalties, as vllm computes them."""
    if inputs.output is None or inputs.prompt is None:
        return logits
    generated, given = (counted(tokens, logits) for tokens in (inputs.output, inputs.prompt))
    if inputs.repetition is not None:
        factor = torch.where((generated + given) > 0, inputs.repetition.unsqueeze(1), 1.0)
        logits = torch.where(logits > 0, logits / factor, logits * factor)
    if inputs.frequency is not None:
        logits = logits - inputs.frequency.unsqueeze(1) * generated
    if inputs.presence is not None:
        logits = logits - inputs.presence.unsqueeze(1) * (generated > 0)
    return logits


def counted(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """How often each token is in the lists, int64 ``[requests, vocabulary]``."""
    counts = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.int64, device=logits.device)
    return counts.scatter_add(1, tokens, torch.ones_like(tokens))[:, :-1]


def scaled(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits over temperatures; a greedy request's stay as they are."""
    if inputs.temperature is None:
        return logits
    return logits / torch.where(inputs.temperature < GREEDY, 1.0, inputs.temperature).unsqueeze(1)


def without_unlikely(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits of tokens that are at least as likely as min-p asks for."""
    if inputs.min_p is None:
        return logits
    limit = logits.amax(dim=1, keepdim=True) + inputs.min_p.log().unsqueeze(1)
    return logits.masked_fill(logits < limit, -torch.inf)


def before_filters(inputs: SamplingInputs) -> torch.Tensor:
    """Logits of which top-k and top-p are taken."""
    return without_unlikely(inputs, scaled(inputs, penalised(inputs, allowed(inputs))))


@implementation("sampling", supports=_SURVIVORS, on_device=True, graph=True)
def npu_top_k_top_p(inputs: SamplingInputs, target: Target) -> Outputs:
    """The operator in vllm-ascend: penalties, temperature and min-p in plain torch."""
    return drawn(inputs, filtered_by_operator(inputs, before_filters(inputs)))


def filtered_by_operator(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits that npu_top_k_top_p leaves."""
    if inputs.top_k is None and inputs.top_p is None:
        return logits
    filtered: torch.Tensor = torch.ops.npu.npu_top_k_top_p(logits.contiguous(), p=inputs.top_p, k=inputs.top_k)
    return filtered


@implementation("sampling", supports={"mass": ("top-k",)}, on_device=True, graph=True)
def operator_then_min_p(inputs: SamplingInputs, target: Target) -> Outputs:
    """The operator in sglang, with min-p behind it."""
    logits = filtered_by_operator(inputs, scaled(inputs, penalised(inputs, allowed(inputs))))
    return drawn(inputs, without_unlikely(inputs, logits))


@implementation("sampling", supports=_SURVIVORS, on_device=True, graph=True)
def sorted_once(inputs: SamplingInputs, target: Target) -> Outputs:
    """As vllm itself: one ascending sort, a threshold for top-k, sums of probabilities for top-p."""
    return drawn(inputs, filtered_by_sort(inputs, before_filters(inputs)))


def filtered_by_sort(inputs: SamplingInputs, logits: torch.Tensor) -> torch.Tensor:
    """Logits that top-k and top-p leave, of which top-p sees what top-k leaves."""
    if inputs.top_k is None and inputs.top_p is None:
        return logits
    values, index = logits.sort(dim=1)
    if inputs.top_k is not None:
        place = (values.shape[1] - inputs.top_k.long()).unsqueeze(1)
        values = values.masked_fill(values < values.gather(1, place), -torch.inf)
    if inputs.top_p is not None:
        gone = values.softmax(dim=1).cumsum(dim=1) <= 1 - inputs.top_p.unsqueeze(1)
        gone[:, -1] = False
        values = values.masked_fill(gone, -torch.inf)
    return torch.empty_like(values).scatter(1, index, values)


@implementation("sampling", supports=_ALL, on_device=True, graph=True)
def by_probability(inputs: SamplingInputs, target: Target) -> Outputs:
    """Without the operator in sglang: a descending sort of probabilities, from which each filter takes its part."""
    logits = scaled(inputs, penalised(inputs, allowed(inputs)))
    return drawn(inputs, logits.masked_fill(~likely(inputs, logits.softmax(dim=1)), -torch.inf))


def likely(inputs: SamplingInputs, probabilities: torch.Tensor) -> torch.Tensor:
    """Which tokens all filters leave, each of which sees the probabilities of all tokens."""
    ranked, index = probabilities.sort(dim=1, descending=True)
    stays = ranked > 0
    if inputs.top_k is not None:
        stays &= torch.arange(ranked.shape[1], device=ranked.device) < inputs.top_k.unsqueeze(1)
    if inputs.top_p is not None:
        stays &= ranked.cumsum(dim=1) - ranked <= inputs.top_p.unsqueeze(1)
    if inputs.min_p is not None:
        stays &= ranked >= ranked[:, :1] * inputs.min_p.unsqueeze(1)
    return torch.zeros_like(stays).scatter(1, index, stays)


@implementation(
    "sampling",
    supports={**_SURVIVORS, **_CONTIGUOUS, "grammar": ("half", "a word", "one token"), "bad_words": ("none",)},
    on_device=True,
    graph=True,
)
def apply_token_bitmask(inputs: SamplingInputs, target: Target) -> Outputs:
    """With a grammar in sglang: the operator of sgl-kernel-npu writes minus infinity into the logits."""
    torch.ops.npu.apply_token_bitmask(inputs.logits, inputs.bitmask)
    logits = penalised(inputs, inputs.logits.float())
    return left(filtered_by_sort(inputs, without_unlikely(inputs, scaled(inputs, logits))))
