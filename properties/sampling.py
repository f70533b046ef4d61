"""What a sampler draws from: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import Changed, relation, rows_reordered
from npudiff.model.component import Component, NotApplicable
from npudiff.model.constraints import Numbers
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.reference.sampling import BITS, MASSES, SamplingInputs, sampling
from npudiff.text import counted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PENALTIES = ("none", "repetition", "frequency", "presence", "all")
GRAMMARS = ("none", "half", "a word", "one token")
"""Tokens that a grammar allows: each by chance, those of one word of the mask, or a single one."""
RECIPES = ("gaussian", "peaked", "flat", "ties", "gone")
"""gaussian: independent logits. peaked: four times as large. flat: a hundredth. ties: few different logits. gone: some
are minus infinity already."""

MOST_ELEMENTS = 2**18
"""Logits up to which a case may have more rows than it must."""

BAD_WORDS = ("none", "single", "begun")
"""single: of one token, which is never drawn. begun: also words that the output has begun, words that differ from its
end in one token, and words that are longer than it."""

LEAST_WORDS = 16
"""Tokens of a vocabulary of which some are always left."""

MOST_LISTS = 256
"""Requests that may have words of their own."""

REPETITIONS, PENALTY = (1.3, 0.8, 2.0), (0.4, -0.3, 1.5)
"""Penalties of requests that have one."""

_KS = (1, 2, 5, 50, 1024, 1025)


def _top_ks(case: SamplingCase) -> Sequence[int]:
    size = case.vocabulary
    return (0, 0, *(count for count in _KS if count < size), size - 1 or 1, size)


@dataclass(frozen=True)
class SamplingCase(Case):
    """One step of sampling, as sizes, what requests ask for, and a recipe."""

    requests: int = axis(
        "rows of logits", rows.COUNTS, drawn=(1, 2, 3, 7, 17, 65),
        affordable=lambda case, requests: case.affords(requests * case.vocabulary, MOST_ELEMENTS),
        shown=lambda case: f"{counted(case.requests, 'request')} of {case.vocabulary} tokens",
    )  # fmt: skip
    vocabulary: int = axis(
        "tokens that there are", range(1, 2**18 + 1), 33,
        drawn=lambda case: (3, 2) if case.huge else (33, 31, 64, 97, 1000, 4097, 32000), shown="",
    )  # fmt: skip
    dtype: str = axis("dtype of logits", tuple(DTYPES), "float32", always=True, region="16 bit")
    penalties: str = axis(
        "penalties that requests ask for", PENALTIES, "none", shown="penalties {}", region="penalties {}",
        drawn=lambda case: PENALTIES if case.history else PENALTIES[:1],
    )  # fmt: skip
    history: int = axis(
        "longest list of tokens, of prompt and output each", range(4097), 0, drawn=(0, 1, 3, 17, 60),
        affordable=lambda case, count: case.affords(case.requests * count, MOST_ELEMENTS), shown="history {}",
    )  # fmt: skip
    temperature: float = axis(
        "temperature; 0 for the most likely token", Numbers(0.0, 100.0), 1.0, drawn=(1.0, 0.7, 1.6, 0.0, 0.05),
        shown="temperature {:g}", region=lambda case: "greedy" if case.temperature == 0 else "",
    )  # fmt: skip
    min_p: float = axis(
        "least share of the largest probability; 0 for none", Numbers(0.0, 1.0), 0.0, drawn=(0.0, 0.0, 0.02, 0.3, 1.0),
        shown="min-p {:g}", region="min-p",
    )  # fmt: skip
    top_k: int = axis(
        "most likely tokens that stay; 0 for all", range(2**18 + 1), 0, drawn=_top_ks,
        fits=lambda case, count: count <= case.vocabulary, shown="top-k {}", region="top-k",
    )  # fmt: skip
    top_p: float = axis(
        "probability that tokens have together which stay; 1 for all", Numbers(0.0, 1.0), 1.0,
        drawn=(1.0, 1.0, 0.9, 0.5, 0.99, 0.1, 0.0), shown="top-p {:g}", region="top-p",
    )  # fmt: skip
    mass: str = axis(
        "of what top-p is a share", MASSES, "survivors", applies=lambda case: case.top_p < 1,
        shown="mass of {}",
    )  # fmt: skip
    mixed: bool = axis(
        "whether requests ask for different things", (False, True), False,
        applies=lambda case: case.requests > 1, shown="mixed", region="mixed",
    )  # fmt: skip
    grammar: str = axis(
        "tokens that a grammar allows", GRAMMARS, "none", drawn=("none", *GRAMMARS), shown="grammar: {}",
        region="grammar",
    )  # fmt: skip
    bad_words: str = axis(
        "words that must not be completed", BAD_WORDS, "none", drawn=("none", "none", "single", "begun", "begun"),
        applies=lambda case: case.grammar == "none" and case.vocabulary >= LEAST_WORDS and case.requests <= MOST_LISTS,
        shown="{} bad words",
        region="bad words",
    )  # fmt: skip
    draws: bool = axis("whether a token is drawn", (False, True), False, drawn=(False, True, True), shown="draws",
                       region="draws")  # fmt: skip
    recipe: str = axis(
        "how the logits are made", RECIPES, "gaussian", drawn=(*RECIPES, "ties", "ties"), region="{}"
    )  # fmt: skip
    rows: str = rows.axis(several="requests")
    seed: int = seed()

    drawn_first = ("vocabulary", "requests", "history", "penalties", "top_k", "top_p", "mass", "mixed")
    shown_first = ("requests", "temperature", "top_k", "top_p", "mass", "min_p")
    outliers = ("vocabulary", "requests", "top_k")
    huge_axes = ("requests",)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.requests * self.vocabulary > 2**24:
            yield f"there would be more than {2**24} logits"
        if self.top_k > self.vocabulary:
            yield f"top_k lies beyond the vocabulary, got {self.top_k}"
        if self.penalties != "none" and not self.history:
            yield "penalties need a history"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "top-k and top-p": self.top_k > 0 and self.top_p < 1,
            "words end early": self.vocabulary % BITS > 0,
            "beyond 1,024": self.top_k > 1024,
        }


def build_inputs(case: SamplingCase) -> SamplingInputs:
    """Build the inputs of a case."""
    penalties = () if case.penalties == "none" else PENALTIES[1:4] if case.penalties == "all" else (case.penalties,)
    size, history = case.vocabulary, bool(case.history)
    return SamplingInputs(
        logits=rows.with_row_stride(_logits(case).to(DTYPES[case.dtype]), case.rows),
        bitmask=_bitmask(case),
        prompt=_tokens(case, "prompt") if history else None,
        output=_tokens(case, "output") if history else None,
        repetition=_asked(case, "repetition", REPETITIONS[0], 1.0, REPETITIONS) if "repetition" in penalties else None,
        frequency=_asked(case, "frequency", PENALTY[0], 0.0, PENALTY) if "frequency" in penalties else None,
        presence=_asked(case, "presence", PENALTY[0], 0.0, PENALTY) if "presence" in penalties else None,
        temperature=_asked(case, "temperature", case.temperature, 1.0, (0.0, 0.7, 2.0)),
        min_p=_asked(case, "min_p", case.min_p, 0.0, (0.05, 0.4)),
        top_k=_asked(
            case, "top_k", case.top_k or size, size, tuple({min(one, size) for one in (1, 2, 30)}), torch.int32
        ),
        top_p=_asked(case, "top_p", case.top_p, 1.0, (0.95, 0.6, 0.2)),
        mass=case.mass,
        bad_words=_bad_words(case) if case.bad_words != "none" else (),
        exponential=_exponential(case) if case.draws else None,
    )


def _exponential(case: SamplingCase) -> torch.Tensor:
    shape = (case.requests, case.vocabulary)
    numbers = Stream(case.seed, "noise").random_uint64(case.requests * case.vocabulary).astype("float64")
    return (
        -torch.from_numpy((numbers + 1) / (2.0**64 + 1)).log().clamp(max=-(2.0**-40)).to(torch.float32).reshape(shape)
    )


def _bad_words(case: SamplingCase) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Words of each request, of which some are one token short of being complete.

    Of each other request that is its likeliest token: filters leave most others out as well.
    """
    outputs = _tokens(case, "output").tolist() if case.history else [[]] * case.requests
    numbers = _words(case, "bad words", case.requests, 4)
    numbers[::2, 1] = _logits(case)[::2].argmax(dim=1)
    chosen = numbers.tolist()
    return tuple(_words_of(case, *both) for both in zip(outputs, chosen, strict=True))


def _words_of(case: SamplingCase, output: Sequence[int], chosen: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    size, kept = case.vocabulary, case.seed % case.vocabulary
    past = [token for token in output if token < size]
    single, end, near, long = (one % size if one % size != kept else (kept + 1) % size for one in chosen)
    if case.bad_words == "single":
        return ((single,), (end,))
    tail = past[-(1 + chosen[0] % 3) :]
    other = [*tail[:-1], (tail[-1] + 1) % size] if tail else [near]
    return ((single,), (*tail, end), (*other, near), (*past, *past, 0, long))


def _asked(
    case: SamplingCase,
    name: str,
    value: float,
    neutral: float,
    others: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor | None:
    """What each request asks for: the case's own, of mixed ones also nothing or something else; None for nobody."""
    if value == neutral:
        return None
    given = torch.full((case.requests,), value, dtype=dtype)
    if case.mixed:
        choices = torch.tensor([value, neutral, *others], dtype=dtype)
        picked = _words(case, name, case.requests)
        given = choices[picked % len(choices)]
        given[case.seed % case.requests] = value
    return given


def _words(case: SamplingCase, name: str, *shape: int) -> torch.Tensor:
    """Random int64 of 31 bits."""
    count = int(torch.Size(shape).numel())
    return torch.from_numpy((Stream(case.seed, name).random_uint64(count) >> 33).astype("int64")).reshape(shape)


def _logits(case: SamplingCase) -> torch.Tensor:
    """Logits; but for ties, those of a request differ by more than the grid of the random numbers."""
    stream = Stream(case.seed, "logits")
    shape = (case.requests, case.vocabulary)
    logits = stream.normal(shape, torch.float32) * 2
    if case.recipe == "ties":
        return logits.round() / 2
    words = _words(case, "fine", *shape)
    logits += (words % 2**24).to(torch.float32) * 2.0**-28
    if case.recipe == "gone":
        gone = words % 3 == 0
        gone[:, case.seed % case.vocabulary] = False
        return logits.masked_fill(gone, -torch.inf)
    return logits * {"peaked": 4.0, "flat": 0.01}.get(case.recipe, 1.0)


def _tokens(case: SamplingCase, name: str) -> torch.Tensor:
    """Lists of tokens of different lengths, with repetitions; among them the first token, and the last."""
    words = _words(case, name, case.requests, case.history)
    few = torch.tensor([0, case.vocabulary - 1, case.seed % case.vocabulary])
    tokens = torch.where(words % 4 == 0, few[words // 4 % 3], words // 4 % case.vocabulary)
    lengths = _words(case, f"{name} lengths", case.requests) % (case.history + 1)
    lengths[case.seed % case.requests] = case.history
    return tokens.masked_fill(torch.arange(case.history) >= lengths.unsqueeze(1), case.vocabulary)


def _bitmask(case: SamplingCase) -> torch.Tensor | None:
    if case.grammar == "none":
        return None
    count = -(-case.vocabulary // BITS)
    random = Stream(case.seed, "grammar").random_uint64(case.requests * count)
    words = torch.from_numpy(random.view("int32")[: case.requests * count].copy()).reshape(case.requests, count)
    token = _words(case, "allowed", case.requests) % case.vocabulary
    bit = (torch.ones_like(token) << token % BITS).to(torch.int32)
    only = torch.zeros_like(words).scatter(1, (token // BITS).unsqueeze(1), 1).bool()
    if case.grammar == "half":
        return torch.where(only, words | bit.unsqueeze(1), words)  # something is allowed
    return torch.where(only, -1 if case.grammar == "a word" else bit.unsqueeze(1), 0).to(torch.int32)


def coordinates(inputs: SamplingInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: request and token, and the token's bit in its word."""
    requests, vocabulary = inputs.logits.shape
    request, token = torch.arange(requests), torch.arange(vocabulary).unsqueeze(0)
    if output in ("count", "token"):
        return {"request": request}
    return {"request": request.unsqueeze(1), "token": token, "bit": token % BITS}


_OF_REQUESTS = ("logits", "bitmask", "prompt", "output", "repetition", "frequency", "presence", "temperature", "min_p",
                "top_k", "top_p", "exponential")  # fmt: skip


def _requests_do_not_mix(inputs: SamplingInputs, case: SamplingCase) -> Changed[SamplingInputs]:
    order = Stream(case.seed, "order").permutation(case.requests)
    words = tuple(inputs.bad_words[one] for one in order) if inputs.bad_words else ()
    changed = rows_reordered(inputs, order, *_OF_REQUESTS)
    return replace(changed, inputs=replace(changed.inputs, bad_words=words))


def _tokens_are_alike(inputs: SamplingInputs, case: SamplingCase) -> Changed[SamplingInputs]:
    """Tokens with other numbers are as likely as they were."""
    order = torch.as_tensor(Stream(case.seed, "tokens").permutation(case.vocabulary))
    number = torch.full((case.vocabulary + 1,), case.vocabulary).index_copy(0, order, torch.arange(len(order)))
    moved_lists: dict[str, Any] = {
        name: number[tokens] for name in ("prompt", "output") if (tokens := getattr(inputs, name)) is not None
    }
    noise = None if inputs.exponential is None else inputs.exponential[:, order].contiguous()
    words = tuple(tuple(tuple(int(number[token]) for token in word) for word in own) for own in inputs.bad_words)
    other = replace(
        inputs, logits=inputs.logits[:, order].contiguous(), exponential=noise, bad_words=words, **moved_lists
    )

    def moved(outputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        whole = {name: outputs[name] for name in ("count",) if name in outputs}
        if "token" in outputs:
            whole["token"] = number[outputs["token"].clamp(0, case.vocabulary)]
        return {**whole, **{name: one[:, order] for name, one in outputs.items() if name not in ("count", "token")}}

    return Changed(other, moved)


def _nothing_is_nothing(inputs: SamplingInputs, case: SamplingCase) -> SamplingInputs:
    """To ask for what changes nothing is to ask for nothing."""
    neutral = {"repetition": 1.0, "frequency": 0.0, "presence": 0.0, "temperature": 1.0, "min_p": 0.0, "top_p": 1.0}
    given: dict[str, Any] = {
        name: torch.full((case.requests,), value) for name, value in neutral.items() if getattr(inputs, name) is None
    }
    if inputs.prompt is None:
        given = {name: one for name, one in given.items() if name not in ("repetition", "frequency", "presence")}
    if case.top_p == 1:
        given.pop("top_p", None)  # what a rounded sum of 1 leaves out is nobody's mistake
    if inputs.top_k is None:
        given["top_k"] = torch.full((case.requests,), case.vocabulary, dtype=torch.int32)
    if not given:
        raise NotApplicable("everything is asked for")
    return replace(inputs, **given)


component = Component(
    name="sampling",
    summary="what a sampler draws from: penalties, temperature, min-p, top-k, top-p, and a grammar's mask",
    case_type=SamplingCase,
    outputs=("kept", "logits", "count", "token"),
    inputs=build_inputs,
    reference=sampling,
    coordinates=coordinates,
    highlighted_region="top-k and top-p",
    relations=(
        relation("requests_do_not_mix", "the order of requests does not matter", _requests_do_not_mix,
                 within={"requests": rows.SEVERAL}),
        relation("tokens_are_alike", "the numbers of tokens do not matter", _tokens_are_alike,
                 within={"grammar": ("none",)}),
        relation("nothing_is_nothing", "to ask for what changes nothing is to ask for nothing", _nothing_is_nothing),
    ),
    baselines=BASELINES["sampling"],
)  # fmt: skip
