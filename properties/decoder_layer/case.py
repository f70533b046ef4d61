"""Cases of a decoder layer: what is drawn, and what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from npudiff.model.constraints import Axis, check_axes
from npudiff.text import counted, listed

KINDS = ("step-3.5", "deepseek")
"""step-3.5: Gemma norms, grouped queries with a window or without, swiglustep. deepseek: plain norms, latents."""

LIMITS = (7.0, 1.5, 0.5)
ROTARY = ("whole", "half")
FORMS = ("float", "w8a8", "w4a8")
FLAGS = ("use_fia", "fia_nz", "mlapo", "native_norm")

_SIZES = range(1, 2**14 + 1)
_LENGTHS = range(1, 2**14 + 1)

AXES = {
    "kind": Axis("model whose layer it is", KINDS),
    "batch": Axis("number of requests", range(1, 257)),
    "prefix": Axis("tokens of a request that go through in a step before", range(2**14 + 1)),
    "prefill": Axis("tokens of a request in the step where all begin", _LENGTHS),
    "decode_steps": Axis("steps with one token of every request", range(65)),
    "window": Axis("visible keys, the query's own included; none for all", range(1, 2**31), optional=True),
    "hidden_size": Axis("elements of a hidden state", _SIZES),
    "query_rank": Axis("elements of the query's latent", _SIZES),
    "kv_heads": Axis("KV heads", _SIZES),
    "group": Axis("query heads per KV head; with latents, query heads", _SIZES),
    "head_dim": Axis("elements of a head", (64, 128)),
    "rotary": Axis("whether whole heads turn, or the first half of them", ROTARY),
    "experts": Axis("experts", _SIZES),
    "chosen": Axis("experts of a token", _SIZES),
    "groups": Axis("groups of experts, of which half are kept", (1, 2, 4)),
    "width": Axis("gates of an expert", _SIZES),
    "form": Axis("what matrices of experts are; rows are int8 where these are integers", FORMS),
    "limit": Axis("limit of routed experts", LIMITS, optional=True),
    "shared_limit": Axis("limit of the shared expert", LIMITS, optional=True),
    "page_size": Axis("tokens per page", _SIZES),
    "use_fia": Axis("ASCEND_USE_FIA", (False, True)),
    "fia_nz": Axis("SGLANG_USE_FIA_NZ", (False, True)),
    "mlapo": Axis("SGLANG_NPU_USE_MLAPO", (False, True)),
    "native_norm": Axis("SGLANG_NPU_FORWARD_NATIVE_GEMMA_RMS_NORM", (False, True)),
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class LayerRequest:
    """Tokens of one request before it decodes: in a first step, and in the one where every request is."""

    prefix: int
    prefill: int


@dataclass(frozen=True)
class DecoderLayerCase:
    """One layer and the steps through it; see the axes."""

    requests: tuple[LayerRequest, ...]
    kind: str = "step-3.5"
    decode_steps: int = 0
    window: int | None = None
    hidden_size: int = 64
    query_rank: int = 32
    kv_heads: int = 1
    group: int = 1
    head_dim: int = 64
    rotary: str = "whole"
    experts: int = 4
    chosen: int = 1
    groups: int = 1
    width: int = 16
    form: str = "float"
    limit: float | None = None
    shared_limit: float | None = None
    page_size: int = 16
    use_fia: bool = True
    fia_nz: bool = False
    mlapo: bool = False
    native_norm: bool = False
    seed: int = 0

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


def values(case: DecoderLayerCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name, None),) for name in AXES}
    used |= {
        "batch": (len(case.requests),),
        "prefix": {request.prefix for request in case.requests},
        "prefill": {request.prefill for request in case.requests},
    }
    return used | dict.fromkeys(("head_dim", "rotary") if case.latent else ("query_rank",), ())


def features(case: DecoderLayerCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    longest = max(case.lengths)
    checks = {
        case.kind: True,
        "decode beyond the window": case.window is not None and case.decode_steps > 0 and longest > case.window,
        "window": case.window is not None,
        "prefix": any(request.prefix for request in case.requests),
        "decode": case.decode_steps > 0,
        "several requests": len(case.requests) > 1,
        "several pages": longest > case.page_size,
        "limited experts": case.limit is not None,
        "quantised experts": case.form != "float",
        **{name: getattr(case, name) for name in FLAGS},
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: DecoderLayerCase) -> str:
    """Return the case as one short line."""
    requests = [(f"{one.prefix}+" if one.prefix else "") + str(one.prefill) for one in case.requests]
    heads = counted(case.group, "head") if case.latent else f"heads {case.kv_heads * case.group}:{case.kv_heads}"
    limits = [
        f"{name} {limit:g}"
        for name, limit in (("limit", case.limit), ("shared limit", case.shared_limit))
        if limit is not None
    ]
    parts = [
        case.kind,
        f"tokens {listed(requests, 'request')}",
        counted(case.decode_steps, "decode step") if case.decode_steps else "",
        "" if case.latent else f"window {'none' if case.window is None else case.window}",
        f"hidden {case.hidden_size}",
        heads,
        "" if case.latent else f"dim {case.head_dim}",
        "half rotary" if case.rotary == "half" else "",
        f"experts {case.chosen} of {case.experts}" + (f" in {case.groups} groups" if case.groups > 1 else ""),
        f"width {case.width}" if case.width != 16 else "",
        case.form if case.form != "float" else "",
        *limits,
        f"page {case.page_size}",
        " ".join(name for name in FLAGS if getattr(case, name)) or "no flags",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: DecoderLayerCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    if not 1 <= len(case.requests) <= 256 or any(
        not 0 <= one.prefix <= 2**14 or not 1 <= one.prefill <= 2**14 for one in case.requests
    ):
        raise ValueError("a case has 1 to 256 requests of up to 16384 tokens, at least one of them after a prefix")
    check_axes(case, AXES, free=("limit", "shared_limit"))
    if case.latent and (case.window is not None or case.kv_heads != 1 or case.rotary != "whole"):
        raise ValueError("layers with latents have no window, one KV head, and a rope part that turns as a whole")
    _check_experts(case)
    heads = case.kv_heads * case.group
    columns = max(heads * 192, case.experts * 2 * case.width, case.query_rank + 576)
    cached = case.pages * case.page_size * max(576, case.kv_heads * 2 * case.head_dim)
    scores = sum(length**2 for length in case.lengths) * heads * case.hidden_size
    if max(case.hidden_size * columns, cached, scores) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor would have more than {_MAX_ELEMENTS} elements")


def _check_experts(case: DecoderLayerCase) -> None:
    if case.experts % case.groups or (case.groups > 1 and case.experts // case.groups <= 2):
        raise ValueError(f"{case.experts} experts do not make {case.groups} groups of more than two")
    if case.chosen > case.experts // case.groups * max(1, case.groups // 2):
        raise ValueError(f"{case.chosen} experts cannot be chosen of {case.experts} in {case.groups} groups")
    if case.form == "w4a8" and (case.hidden_size % 8 or case.width % 4):
        raise ValueError(f"columns of int4 fill words of eight, got {case.hidden_size} and {2 * case.width}")
    for limit in (case.limit, case.shared_limit):
        if limit is not None and not 1e-3 <= limit <= 1e4:
            raise ValueError(f"limits must be none or lie in 0.001..10000, got {limit}")
