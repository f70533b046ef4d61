"""Cases of a decoder layer: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from npudiff.model.case import DeclaredCase, axis, derived, part, seed
from npudiff.model.constraints import Numbers
from npudiff.text import counted, listed

KINDS = ("step-3.5", "deepseek")
"""step-3.5: Gemma norms, grouped queries with a window or without, swiglustep. deepseek: plain norms, latents."""

LIMITS = (7.0, 1.5, 0.5)
ROTARY = ("whole", "half")
FORMS = ("float", "w8a8", "w4a8")
FLAGS = ("use_fia", "fia_nz", "mlapo", "native_norm")

_SIZES = range(1, 2**14 + 1)
_LENGTHS = range(1, 2**14 + 1)

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class LayerRequest:
    """Tokens of one request before it decodes: in a first step, and in the one where every request is."""

    prefix: int
    prefill: int


def _limit(meaning: str, shown: str) -> Any:  # noqa: ANN401 - a field of floats
    return axis(meaning, Numbers(1e-3, 1e4), None, optional=True, drawn=(None, *LIMITS), shown=shown)


def _flag(name: str, default: bool = False) -> Any:  # noqa: ANN401 - a field of truth values
    """Declare an environment variable of the backend; texts say all of them after ``use_fia``."""
    return axis(name, (False, True), default, shown="")


def _requests_text(case: DecoderLayerCase) -> str:
    requests = [(f"{one.prefix}+" if one.prefix else "") + str(one.prefill) for one in case.requests]
    return f"{case.kind} · tokens {listed(requests, 'request')}"


def _heads_text(case: DecoderLayerCase) -> str:
    return counted(case.group, "head") if case.latent else f"heads {case.kv_heads * case.group}:{case.kv_heads}"


def _experts_text(case: DecoderLayerCase) -> str:
    return f"experts {case.top_k} of {case.experts}" + (f" in {case.groups} groups" if case.groups > 1 else "")


@dataclass(frozen=True)
class DecoderLayerCase(DeclaredCase):
    """One layer and the steps through it; the strategy of the component draws it."""

    requests: tuple[LayerRequest, ...] = part(shown=_requests_text)
    kind: str = axis("model whose layer it is", KINDS, "step-3.5", shown="", region=lambda case: case.kind)
    decode_steps: int = axis(
        "steps with one token of every request", range(65), 0, shown="{} decode step(s)", region="decode"
    )
    window: int | None = axis(
        "visible keys, the query's own included; none for all", range(1, 2**31), None, optional=True,
        shown=lambda case: "" if case.latent else f"window {'none' if case.window is None else case.window}",
        region="window",
    )  # fmt: skip
    hidden_size: int = axis("elements of a hidden state", _SIZES, 64, shown="hidden {}", always=True)
    query_rank: int = axis("elements of the query's latent", _SIZES, 32, applies=lambda case: case.latent, shown="")
    kv_heads: int = axis("KV heads", _SIZES, 1, shown=_heads_text)
    group: int = axis("query heads per KV head; with latents, query heads", _SIZES, 1, shown="")
    head_dim: int = axis(
        "elements of a head", (64, 128), 64, applies=lambda case: not case.latent, shown="dim {}", always=True
    )
    rotary: str = axis(
        "whether whole heads turn, or the first half of them", ROTARY, "whole", applies=lambda case: not case.latent,
        shown="{} rotary",
    )  # fmt: skip
    experts: int = axis("experts", _SIZES, 4, shown=_experts_text)
    top_k: int = axis("experts of a token", _SIZES, 1, shown="", was="chosen")
    groups: int = axis("groups of experts, of which half are kept", (1, 2, 4), 1, shown="")
    width: int = axis("gates of an expert", _SIZES, 16, shown="width {}")
    form: str = axis(
        "what matrices of experts are; rows are int8 where these are integers", FORMS, "float",
        region="quantised experts",
    )  # fmt: skip
    limit: float | None = _limit("limit of routed experts", "limit {:g}")
    shared_limit: float | None = _limit("limit of the shared expert", "shared limit {:g}")
    page_size: int = axis("tokens per page", _SIZES, 16, shown="page {}", always=True)
    use_fia: bool = axis(
        "ASCEND_USE_FIA", (False, True), True,
        shown=lambda case: " ".join(name for name in FLAGS if getattr(case, name)) or "no flags",
    )  # fmt: skip
    fia_nz: bool = _flag("SGLANG_USE_FIA_NZ")
    mlapo: bool = _flag("SGLANG_NPU_USE_MLAPO")
    native_norm: bool = _flag("SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM")
    seed: int = seed()

    @derived("number of requests", range(1, 257))
    def batch(self) -> int:
        """Number of requests."""
        return len(self.requests)

    @derived("tokens of a request that go through in a step before", range(2**14 + 1), each=True)
    def prefix(self) -> Collection[int]:
        """Tokens of the requests that go through in a step before."""
        return {request.prefix for request in self.requests}

    @derived("tokens of a request in the step where all begin", _LENGTHS, each=True)
    def prefill(self) -> Collection[int]:
        """Tokens of the requests in the step where all begin."""
        return {request.prefill for request in self.requests}

    @property
    def latent(self) -> bool:
        """Whether keys and values are latents."""
        return self.kind == "deepseek"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each request at the end."""
        return tuple(request.prefix + request.prefill + self.decode_steps for request in self.requests)

    @property
    def pages(self) -> int:
        """Pages of each pool: the dummy page 0, one that is nobody's, and those of all requests."""
        return 2 + sum(-(-length // self.page_size) for length in self.lengths)

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.latent and (self.window is not None or self.kv_heads != 1 or self.rotary != "whole"):
            yield "layers with latents have no window, one KV head, and a rope part that turns as a whole"
        if self.experts % self.groups or (self.groups > 1 and self.experts // self.groups <= 2):
            yield f"{self.experts} experts do not make {self.groups} groups of more than two"
        if self.top_k > self.experts // self.groups * max(1, self.groups // 2):
            yield f"{self.top_k} experts cannot be chosen of {self.experts} in {self.groups} groups"
        if self.form == "w4a8" and (self.hidden_size % 8 or self.width % 4):
            yield f"columns of int4 fill words of eight, got {self.hidden_size} and {2 * self.width}"
        heads = self.kv_heads * self.group
        columns = max(heads * 192, self.experts * 2 * self.width, self.query_rank + 576)
        cached = self.pages * self.page_size * max(576, self.kv_heads * 2 * self.head_dim)
        scores = sum(length**2 for length in self.lengths) * heads * self.hidden_size
        if max(self.hidden_size * columns, cached, scores) > _MAX_ELEMENTS:
            yield f"a tensor would have more than {_MAX_ELEMENTS} elements"

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        longest = max(self.lengths)
        beyond = self.window is not None and self.decode_steps > 0 and longest > self.window
        return {
            "decode beyond the window": beyond,
            "prefix": any(request.prefix for request in self.requests),
            "several requests": len(self.requests) > 1,
            "several pages": longest > self.page_size,
            "limited experts": self.limit is not None,
            **{name: getattr(self, name) for name in FLAGS},
        }
