"""The arguments of ``npu_mla_prolog`` in all versions, by one set of names, and what the host code refuses."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.errors import ErrorCode, NotSimulated, OperatorRejected
from npudiff.device.simulator.rotary.requirements import require_rank

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

V1 = "npu_mla_prolog"
V2 = "npu_mla_prolog_v2"
V3 = "npu_mla_prolog_v3"
V3_FUNCTIONAL = "npu_mla_prolog_v3_functional"

_INPUTS = (
    "token_x",
    "weight_dq",
    "weight_uq_qr",
    "weight_uk",
    "weight_dkv_kr",
    "rmsnorm_gamma_cq",
    "rmsnorm_gamma_ckv",
    "rope_sin",
    "rope_cos",
)


@dataclass(frozen=True)
class PrologRequest:
    """One call. Names are those of the schemas, and so are defaults; ``extras`` has what is given besides."""

    operator: str
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
    extras: tuple[tuple[str, Any], ...] = ()

    @property
    def is_v3(self) -> bool:
        """Version 3 or its functional form."""
        return self.operator in (V3, V3_FUNCTIONAL)

    @property
    def tokens(self) -> tuple[int, ...]:
        """(T,) or (B, S), as token_x has them."""
        return tuple(self.token_x.shape[:-1])

    def rejected(
        self, argument: str, given: object, allowed: str, code: ErrorCode = ErrorCode.TILING
    ) -> OperatorRejected:
        """Make the error of a call that the operator refuses."""
        return OperatorRejected(self.operator, argument, given, allowed, code)

    def not_simulated(self, argument: str, given: object, simulated: str) -> NotSimulated:
        """Make the error of a call that the simulator cannot run."""
        return NotSimulated(self.operator, argument, given, simulated)


_NAMES = frozenset(field.name for field in fields(PrologRequest)) - {"operator", "extras"}


def normalise(operator: str, tensors: Sequence[Tensor], options: Mapping[str, Any]) -> PrologRequest:
    """Name the arguments of a call; nothing is checked.

    Parameters
    ----------
    operator : str
        ``V1``, ``V2``, ``V3`` or ``V3_FUNCTIONAL``.
    tensors : sequence of Tensor
        The positional arguments in the order of the schema: versions 1 and 2 have cache_index before the caches,
        version 3 has it among the options.
    options : mapping
        Keyword arguments; absent ones have the schema's default.
    """
    last = ("cache_index", "kv_cache", "kr_cache") if operator in (V1, V2) else ("kv_cache", "kr_cache")
    named: dict[str, Any] = dict(zip((*_INPUTS, *last), tensors, strict=True))
    known = {name: value for name, value in options.items() if name in _NAMES}
    extras = tuple((name, value) for name, value in options.items() if name not in _NAMES and value is not None)
    return PrologRequest(operator=operator, extras=extras, **named, **known)


def check_host(request: PrologRequest) -> None:
    """Raise what the host code and META raise: ranks of token_x, weight_uk and rope_sin.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    token_x, rope_sin = request.token_x, request.rope_sin
    if token_x.dim() not in (2, 3):
        given = f"of rank {token_x.dim()}"
        raise request.rejected("token_x", given, "rank 2, [T, He], or 3, [B, S, He]", ErrorCode.WRAPPER)
    require_rank(request.operator, "weight_uk", request.weight_uk, 3, ErrorCode.WRAPPER)
    if request.is_v3 and rope_sin.dim() != token_x.dim():
        allowed = f"the rank of token_x, {token_x.dim()}"
        raise request.rejected("rope_sin", f"of rank {rope_sin.dim()}", allowed, ErrorCode.WRAPPER)
    if rope_sin.dim() not in (2, 3):
        raise request.rejected("rope_sin", f"of rank {rope_sin.dim()}", "rank 2 or 3", ErrorCode.WRAPPER)
