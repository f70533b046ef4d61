"""The arguments of ``npu_mla_prolog`` in all versions under one set of names, and the sizes of a call."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode

if TYPE_CHECKING:
    from torch import Tensor

V1 = "npu_mla_prolog"
V2 = "npu_mla_prolog_v2"
V3 = "npu_mla_prolog_v3"
V3_FUNCTIONAL = "npu_mla_prolog_v3_functional"


@dataclass(frozen=True)
class PrologRequest:
    """One call, with the names and defaults of the schemas; ``extras`` holds the other arguments that were given."""

    check: ArgumentChecks
    token_x: Tensor
    weight_dq: Tensor
    weight_uq_qr: Tensor
    weight_uk: Tensor
    weight_dkv_kr: Tensor
    rmsnorm_gamma_cq: Tensor
    rmsnorm_gamma_ckv: Tensor
    rope_sin: Tensor
    rope_cos: Tensor
    kv_cache: Tensor
    kr_cache: Tensor
    cache_index: Tensor | None = None
    rmsnorm_epsilon_cq: float = 1e-5
    rmsnorm_epsilon_ckv: float = 1e-5
    cache_mode: str = "PA_BSND"
    query_norm_flag: bool = False
    qc_qr_scale: float = 1.0
    kc_scale: float = 1.0
    tile_size: int = 128
    extras: tuple[tuple[str, Any], ...] = ()

    @property
    def is_v3(self) -> bool:
        """Version 3 or its functional form."""
        return self.check.operator in (V3, V3_FUNCTIONAL)

    def scale(self, argument: str) -> Tensor | None:
        """Return one of the scales, or None where it was not given."""
        found: Tensor | None = dict(self.extras).get(argument)
        return found

    @property
    def takes_int8_tokens(self) -> bool:
        """Whether token_x may be int8: in all versions but the first."""
        return self.check.operator != V1

    @property
    def tokens(self) -> tuple[int, ...]:
        """(T,) or (B, S), as token_x has them."""
        return tuple(self.token_x.shape[:-1])


def normalise(operator: str, **arguments: Any) -> PrologRequest:  # noqa: ANN401 - those of the schemas
    """Name the arguments of a call to one of the versions; nothing is checked."""
    names = {field.name for field in fields(PrologRequest)}
    known = {name: value for name, value in arguments.items() if name in names}
    extras = tuple((name, value) for name, value in arguments.items() if name not in names and value is not None)
    return PrologRequest(ArgumentChecks(operator, default=ErrorCode.TILING), extras=extras, **known)


@dataclass(frozen=True)
class PrologSizes:
    """The sizes He, Hcq, N, D, Dr and Hckv, and those of the caches."""

    hidden: int
    query_rank: int
    heads: int
    nope: int
    rope: int
    latent: int
    blocks: int
    block_size: int
