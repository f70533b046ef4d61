"""The operators of this family: torch_npu's, and one of sgl-kernel-npu."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.mla import preprocess_checks, prolog, schemas
from npudiff.device.simulator.mla.preprocess import mla_preprocess, mla_preprocess_meta
from npudiff.device.simulator.mla.prolog_request import PrologRequest, normalise
from npudiff.device.simulator.schemas import qualified_name

_WEIGHTS = ("weight_dq", "weight_uq_qr", "weight_dkv_kr")


def _prolog(schema: str, cpu: Callable[[PrologRequest], object], meta: Callable[[PrologRequest], object]) -> Operator:
    return Operator(schema, cpu, meta, _WEIGHTS, partial(normalise, qualified_name(schema)))


OPERATORS = (
    _prolog(schemas.MLA_PROLOG, prolog.mla_prolog, prolog.mla_prolog_meta),
    _prolog(schemas.MLA_PROLOG_V2, prolog.mla_prolog_v2, prolog.mla_prolog_v2_meta),
    _prolog(schemas.MLA_PROLOG_V3, prolog.mla_prolog_v3, prolog.mla_prolog_v3_meta),
    _prolog(schemas.MLA_PROLOG_V3_FUNCTIONAL, prolog.mla_prolog_v3_functional, prolog.mla_prolog_v3_functional_meta),
    Operator(schemas.MLA_PREPROCESS, mla_preprocess, mla_preprocess_meta, request=preprocess_checks.normalise),
)
"""Every operator of the family."""
