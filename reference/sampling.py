"""What a sampler draws from: logits after penalties and temperature, and which tokens filters leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import EXPONENTIAL_ERROR, FLOAT32_ROUNDOFF, Expected, accumulation_error
from npudiff.reference.inexact import FUNCTION_ERROR, FUNCTION_SCALE, Inexact
from npudiff.reference.views import moved_inputs

MASSES = ("survivors", "top-k", "all")
"""Of what ``top_p`` is a share: of the tokens that other filters leave, of those that ``top_k`` leaves, or of all that
a grammar allows. The first is vllm's. sglang, where min-p comes last, has the second with the operator of top-k and
top-p, and the third without it; so has vllm-ascend."""

LEAST_PROBABILITY = 87.0
"""The negative logarithm of a probability that is near the smallest normal number of float32."""

BITS = 32
"""Tokens of a word of a bit mask."""


@dataclass(frozen=True)
class SamplingInputs:
    """Logits of one token for each request, and what a request asks for. What is None is asked for by none."""

    logits: torch.Tensor
    """``[requests, vocabulary]``, float32, bfloat16 or float16."""
    bitmask: torch.Tensor | None = None
    """int32 ``[requests, ceil(vocabulary / 32)]``: bit ``v % 32`` of word ``v // 32`` is 1 where a grammar allows v."""
    prompt: torch.Tensor | None = None
    output: torch.Tensor | None = None
    """int64 ``[requests, longest]``: tokens of the prompt, and those that were generated. Shorter rows are filled with
    the size of the vocabulary."""
    repetition: torch.Tensor | None = None
    """float32 ``[requests]``, above 0; 1 changes nothing."""
    frequency: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    """float32 ``[requests]``; 0 changes nothing."""
    temperature: torch.Tensor | None = None
    """float32 ``[requests]``; 0 for a request that takes its most likely token, whose logits stay as they are."""
    min_p: torch.Tensor | None = None
    """float32 ``[requests]``, of the probability of the most likely token; 0 leaves all."""
    top_k: torch.Tensor | None = None
    """int32 ``[requests]``, from 1 on; the size of the vocabulary leaves all."""
    top_p: torch.Tensor | None = None
    """float32 ``[requests]``, 0 to 1; 1 leaves all."""
    mass: str = "survivors"
    """One of ``MASSES``."""
    bad_words: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """Of each request the words that it must not complete, each as its tokens; nothing for none."""
    exponential: torch.Tensor | None = None
    """float32 ``[requests, vocabulary]``, above 0: the token that is drawn has the largest ``probability /
    exponential``. None where nothing is drawn."""

    def to(self, device: str | torch.device) -> SamplingInputs:
        """Return the same inputs on ``device``; logits are a copy, into which an implementation may write."""
        return moved_inputs(self, device, copies=("logits",))


def sampling(inputs: SamplingInputs) -> dict[str, Expected]:
    """Return the logits that are left, and which they are.

    In this order, in float32: tokens that the grammar does not allow are gone, and those that would complete a bad
    word, whose other tokens are the last of the output; penalties (``l / r`` or ``l * r`` of a token in prompt or
    output; ``frequency`` times its number in the output, and ``presence``, are subtracted);
    ``l / temperature``; tokens less likely than ``min_p`` times the most likely one are gone; those below the ``top_k``
    most likely ones; and those that are not needed to reach ``top_p``: a token stays if those that are more likely have
    less than it together. The most likely token always stays (vLLM, ``v1/sample/sampler.py``; Holtzman et al., 2020).

    Returns
    -------
    dict
        ``kept``: int8 ``[requests, vocabulary]``, 1 for each token that is left. ``logits``: float32 of the same shape,
        0 where a token is gone. ``count``: int64 ``[requests]``, how many are left. ``token``:
        int64 ``[requests]``, the one that is drawn, of a request with temperature 0 the most likely one: of independent
        exponential numbers the smallest ``e / p`` is that of a token with its probability. Nothing is said of it
        without random numbers.

    Raises
    ------
    ValueError
        If shapes or values contradict each other.

    Notes
    -----
    Nothing is said of tokens that are as likely as the last that ``top_k`` leaves: operators keep all of them, others
    as many as fit. The same goes for equally likely ones at the limit of ``top_p``, of which operators drop those with
    lower indices first, and for those that are nearer to a limit than rounding allows to tell. How many are left is
    known between what surely is and what may be, at least ``top_k`` where nothing else takes any. Nothing is said of a
    token that is drawn where another one is as near as rounding, or may not be left.
    """
    _validate(inputs)
    left = _without(~_allowed(inputs), _scaled(inputs, _penalised(inputs, Inexact.exact(inputs.logits))))
    sure, maybe = _at_all(left)
    for filtered in (_within_min_p(inputs, left), _within_top_k(inputs, left)):
        sure, maybe = sure & filtered[0], maybe & filtered[1]
    last = _within_top_p(inputs, left, (sure, maybe))
    sure, maybe = sure & last[0], maybe & last[1]
    return {**_expected(inputs, left, sure, maybe), "token": _drawn(inputs, left, sure, maybe)}


_Sets = tuple[torch.Tensor, torch.Tensor]
"""Tokens that surely stay, and those that may, bool ``[requests, vocabulary]``."""


def _allowed(inputs: SamplingInputs) -> torch.Tensor:
    shape = inputs.logits.shape
    there = inputs.logits > -torch.inf
    for request, forbidden in enumerate(inputs.bad_words):
        past = [] if inputs.output is None else [one for one in inputs.output[request].tolist() if one < shape[1]]
        for word in forbidden:
            begun = len(word) - 1
            if begun <= len(past) and past[len(past) - begun :] == list(word[:-1]):
                there[request, word[-1]] = False
    if inputs.bitmask is None:
        return there
    token = torch.arange(shape[1])
    words = inputs.bitmask.to(torch.int64)[:, token // BITS]
    return there & ((words >> token % BITS) & 1).bool()


def _counts(tokens: torch.Tensor | None, shape: torch.Size) -> torch.Tensor:
    """How often a token is in each row, float64 ``[requests, vocabulary]``."""
    counts = torch.zeros(shape[0], shape[1] + 1, dtype=torch.float64)
    if tokens is not None:
        counts.scatter_add_(1, tokens, torch.ones(tokens.shape, dtype=torch.float64))
    return counts[:, :-1]


def _penalised(inputs: SamplingInputs, logits: Inexact) -> Inexact:
    shape = inputs.logits.shape
    generated = _counts(inputs.output, shape)
    if inputs.repetition is not None:
        seen = (generated + _counts(inputs.prompt, shape)) > 0
        factor = inputs.repetition.to(torch.float64).unsqueeze(1)
        changed = torch.where(logits.value > 0, logits.value / factor, logits.value * factor)
        # A quotient rounds once; a product with the reciprocal, which some take, twice.
        logits = _where(seen & (factor != 1), Inexact(changed, logits.error).in_float32(2), logits)
    for penalty, times in ((inputs.frequency, generated), (inputs.presence, (generated > 0).to(torch.float64))):
        if penalty is not None:
            taken = Inexact.exact(penalty.to(torch.float64).unsqueeze(1) * times).in_float32()
            logits = _where(taken.value != 0, logits.minus(taken).in_float32(), logits)
    return logits


def _where(changed: torch.Tensor, new: Inexact, old: Inexact) -> Inexact:
    return Inexact(torch.where(changed, new.value, old.value), torch.where(changed, new.error, old.error))


def _scaled(inputs: SamplingInputs, logits: Inexact) -> Inexact:
    if inputs.temperature is None:
        return logits
    factor = inputs.temperature.to(torch.float64).unsqueeze(1)
    factor = torch.where(factor == 0, 1.0, factor)
    scaled = Inexact(logits.value / factor, logits.error / factor).in_float32(2)
    return _where(factor != 1, scaled, logits)


def _without(gone: torch.Tensor, logits: Inexact) -> Inexact:
    return Inexact(logits.value.masked_fill(gone, -torch.inf), logits.error.masked_fill(gone, 0.0))


def _at_all(left: Inexact) -> _Sets:
    """Tokens whose probability is a number of float32; of less likely ones it may be 0, and nobody draws them."""
    return left.value > left.value.amax(1, keepdim=True) - LEAST_PROBABILITY, left.value > -torch.inf


def _within_min_p(inputs: SamplingInputs, left: Inexact) -> _Sets:
    """Tokens that are at least as likely as a share of the most likely one."""
    if inputs.min_p is None:
        return _all(left)
    value, error = left.value, left.error
    share = inputs.min_p.to(torch.float64).unsqueeze(1).log()
    most = value.amax(1, keepdim=True)
    limit = most + share
    # Some compare logits with a sum, some probabilities with a product.
    of_logarithm = FUNCTION_ERROR * share.abs().clamp(min=FUNCTION_SCALE) + 2 * FLOAT32_ROUNDOFF * limit.abs()
    of_exponentials = 2 * EXPONENTIAL_ERROR + 2 * FLOAT32_ROUNDOFF
    room = error + error.amax(1, keepdim=True) + of_logarithm + of_exponentials
    off = inputs.min_p.unsqueeze(1) == 0
    alone = value == most  # it is not less likely than a part of itself, whatever is rounded
    return off | alone | (value - room >= limit), off | alone | (value + room >= limit)


def _within_top_k(inputs: SamplingInputs, left: Inexact) -> _Sets:
    """The most likely tokens; those that are as likely as the last one may stay or go, unless there is one only."""
    if inputs.top_k is None:
        return _all(left)
    value, error = left.value, left.error
    places = inputs.top_k.to(torch.int64).clamp(1, value.shape[1]).unsqueeze(1) - 1
    last = value.sort(dim=1, descending=True).values.gather(1, places)
    room = error + error.amax(1, keepdim=True)
    above, near = value - room > last, (value - last).abs() <= room
    near |= value == last
    alone = near.sum(1, keepdim=True) == 1
    all_of_them = last == -torch.inf
    return all_of_them | above | (near & alone), all_of_them | above | near


def _within_top_p(inputs: SamplingInputs, left: Inexact, others: _Sets) -> _Sets:
    """Tokens of which those that are more likely have less than a share together."""
    if inputs.top_p is None:
        return _all(left)
    value, error = left.value, left.error
    room = (error + error.amax(1, keepdim=True)).amax(1, keepdim=True)
    counted = {"all": _all(left), "top-k": _within_top_k(inputs, left), "survivors": others}
    least, most = counted[inputs.mass]
    size = (value - value.amax(1, keepdim=True)).exp()
    ranked, order = value.sort(dim=1, descending=True)
    up_to = torch.nn.functional.pad((size * most).gather(1, order).cumsum(1), (1, 0))
    surely_up_to = torch.nn.functional.pad((size * least).gather(1, order).cumsum(1), (1, 0))
    ascending = -ranked
    first = torch.searchsorted(ascending, -(value + room), right=False)  # those before are surely more likely
    behind = torch.searchsorted(ascending, -(value - room), right=True)  # those from here on are surely less likely
    limit = inputs.top_p.to(torch.float64).unsqueeze(1)
    # More of the tokens at other filters' limits make every share smaller, and add to what is above.
    before_at_least = surely_up_to.gather(1, first) / up_to[:, -1:]
    before_at_most = (up_to.gather(1, behind) - size * most) / surely_up_to[:, -1:].clamp(min=torch.finfo().tiny)
    off = accumulation_error(value.shape[1]) + 2 * EXPONENTIAL_ERROR + 4 * FLOAT32_ROUNDOFF + 2 * room
    top = value >= value.amax(1, keepdim=True) - room
    alone = top & (top.sum(1, keepdim=True) == 1)
    return alone | (before_at_most + off < limit), alone | (before_at_least - off < limit)


def _all(left: Inexact) -> _Sets:
    there = left.value > -torch.inf
    return there, there


def _expected(inputs: SamplingInputs, left: Inexact, sure: torch.Tensor, maybe: torch.Tensor) -> dict[str, Expected]:
    unsure = maybe & ~sure
    value = torch.zeros_like(left.value)
    return {
        "kept": Expected(sure.to(torch.float64), value.masked_fill(unsure, torch.inf), torch.int8),
        "logits": Expected(
            torch.where(sure, left.value, value),
            torch.where(sure, left.error, value).masked_fill(unsure, torch.inf),
            torch.float32,
        ),
        "count": _count(inputs, left, sure, maybe),
    }


def _count(inputs: SamplingInputs, left: Inexact, sure: torch.Tensor, maybe: torch.Tensor) -> Expected:
    """How many tokens are left: at least those that surely are, one if there is any, and as many as top-k asks for."""
    least, most = sure.sum(1), maybe.sum(1)
    likely, there = _at_all(left)
    least = torch.maximum(least, there.any(1).to(torch.int64))
    if inputs.top_k is not None and inputs.top_p is None and inputs.min_p is None:
        least = torch.maximum(least, torch.minimum(inputs.top_k.to(torch.int64), (likely & there).sum(1)))
    half = (most - least).to(torch.float64) / 2
    # The next integer is one half beyond the ends.
    return Expected((least + most).to(torch.float64) / 2, torch.where(half > 0, half + 0.25, 0.0), torch.int64)


def _drawn(inputs: SamplingInputs, left: Inexact, sure: torch.Tensor, maybe: torch.Tensor) -> Expected:
    """The token with the largest probability over its random number, as logarithms, where that is beyond doubt."""
    if inputs.exponential is None:
        nothing = torch.zeros(len(left.value), dtype=torch.float64)
        return Expected(nothing, nothing + torch.inf, torch.int64)
    noise = -inputs.exponential.to(torch.float64).log()
    if inputs.temperature is not None:
        noise = noise.masked_fill((inputs.temperature == 0).unsqueeze(1), 0.0)
    below = left.value - left.value.amax(1, keepdim=True)
    # An exponential of a rounded difference, its sum, the quotient with it, and the one with the random number.
    room = left.error + EXPONENTIAL_ERROR + FLOAT32_ROUNDOFF * (below.abs() + 4)
    low = torch.where(sure, below + noise - room, -torch.inf)
    high = torch.where(maybe, below + noise + room, -torch.inf)
    best = low.argmax(dim=1)
    others = high.scatter(1, best.unsqueeze(1), -torch.inf).amax(1)
    certain = low.amax(1) > others
    # Sums over all tokens are off as one for each, and change no order. What underflows is not the largest.
    bound = torch.where(certain, 0.0, torch.inf).to(torch.float64)
    return Expected(best.to(torch.float64), bound, torch.int64)


def _validate(inputs: SamplingInputs) -> None:
    requests, vocabulary = inputs.logits.shape
    if inputs.mass not in MASSES:
        raise ValueError(f"mass is one of {', '.join(MASSES)}, got {inputs.mass}")
    words = -(-vocabulary // BITS)
    if inputs.bitmask is not None and tuple(inputs.bitmask.shape) != (requests, words):
        raise ValueError(f"bitmask must be [{requests}, {words}], got {list(inputs.bitmask.shape)}")
    for name in ("repetition", "frequency", "presence", "temperature", "min_p", "top_k", "top_p"):
        given = getattr(inputs, name)
        if given is not None and tuple(given.shape) != (requests,):
            raise ValueError(f"{name} must be [{requests}], got {list(given.shape)}")
    if inputs.exponential is not None and tuple(inputs.exponential.shape) != (requests, vocabulary):
        raise ValueError(f"exponential must be [{requests}, {vocabulary}], got {list(inputs.exponential.shape)}")
    if len(inputs.bad_words) not in (0, requests):
        raise ValueError(f"there are bad words of {len(inputs.bad_words)} of {requests} requests")
    if any(not word or max(word) >= vocabulary or min(word) < 0 for one in inputs.bad_words for word in one):
        raise ValueError(f"a bad word has a token or more, each in 0..{vocabulary - 1}")
    for name in ("prompt", "output"):
        tokens = getattr(inputs, name)
        if tokens is not None and (tokens.shape[0] != requests or bool(((tokens < 0) | (tokens > vocabulary)).any())):
            raise ValueError(f"{name} must have {requests} rows of tokens in 0..{vocabulary}")
