"""The operators of this family: torch_npu's, and one of sgl-kernel-npu."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.mla import prolog, prolog_shapes, schemas
from npudiff.device.simulator.mla.preprocess import mla_preprocess, mla_preprocess_meta

_WEIGHTS = ("weight_dq", "weight_uq_qr", "weight_dkv_kr")

OPERATORS = (
    Operator(schemas.MLA_PROLOG, prolog.mla_prolog, prolog_shapes.mla_prolog_meta, _WEIGHTS),
    Operator(schemas.MLA_PROLOG_V2, prolog.mla_prolog_v2, prolog_shapes.mla_prolog_v2_meta, _WEIGHTS),
    Operator(schemas.MLA_PROLOG_V3, prolog.mla_prolog_v3, prolog_shapes.mla_prolog_v3_meta, _WEIGHTS),
    Operator(
        schemas.MLA_PROLOG_V3_FUNCTIONAL,
        prolog.mla_prolog_v3_functional,
        prolog_shapes.mla_prolog_v3_functional_meta,
        _WEIGHTS,
    ),
    Operator(schemas.MLA_PREPROCESS, mla_preprocess, mla_preprocess_meta),
)
"""Every operator of the family."""
