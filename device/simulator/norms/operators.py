"""The operators of this family."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.norms import add_rms_norm as add
from npudiff.device.simulator.norms import add_rms_norm_dynamic_quant as dynamic
from npudiff.device.simulator.norms import kv_rmsnorm_rope_cache as kv
from npudiff.device.simulator.norms import schemas
from npudiff.device.simulator.norms.add_rms_norm_quant import add_rms_norm_quant, add_rms_norm_quant_meta
from npudiff.device.simulator.norms.kv_request import KvRequest
from npudiff.device.simulator.norms.rms_norm import gemma_rms_norm, norm_meta, rms_norm
from npudiff.device.simulator.norms.rms_norm_backward import rms_norm_backward, rms_norm_backward_meta
from npudiff.device.simulator.norms.rms_norm_quant import rms_norm_quant, rms_norm_quant_meta
from npudiff.device.simulator.schemas import qualified_name


def _kv(schema: str, cpu: Callable[[KvRequest], object], meta: Callable[[KvRequest], object]) -> Operator:
    checks = ArgumentChecks(qualified_name(schema), default=ErrorCode.PARAMETER)
    return Operator(schema, cpu, meta, request=partial(KvRequest, checks))


OPERATORS = (
    Operator(schemas.RMS_NORM, rms_norm, norm_meta),
    Operator(schemas.RMS_NORM_BACKWARD, rms_norm_backward, rms_norm_backward_meta),
    Operator(schemas.GEMMA_RMS_NORM, gemma_rms_norm, norm_meta),
    Operator(schemas.ADD_RMS_NORM, add.add_rms_norm, add.add_rms_norm_meta),
    Operator(schemas.ADD_RMS_NORM_V2, add.add_rms_norm_v2, add.add_rms_norm_v2_meta),
    Operator(schemas.ADD_RMS_NORM_V2_FUNCTIONAL, add.add_rms_norm_v2_functional, add.add_rms_norm_v2_functional_meta),
    Operator(schemas.ADD_RMS_NORM_QUANT, add_rms_norm_quant, add_rms_norm_quant_meta),
    Operator(
        schemas.ADD_RMS_NORM_DYNAMIC_QUANT,
        dynamic.add_rms_norm_dynamic_quant,
        dynamic.add_rms_norm_dynamic_quant_meta,
        request=dynamic.DynamicQuantRequest,
    ),
    Operator(schemas.RMS_NORM_QUANT, rms_norm_quant, rms_norm_quant_meta),
    _kv(schemas.KV_RMSNORM_ROPE_CACHE, kv.kv_rmsnorm_rope_cache, kv.kv_rmsnorm_rope_cache_meta),
    _kv(schemas.KV_RMSNORM_ROPE_CACHE_V2, kv.write, kv.kv_rmsnorm_rope_cache_v2_meta),
    _kv(
        schemas.KV_RMSNORM_ROPE_CACHE_V2_FUNCTIONAL,
        kv.kv_rmsnorm_rope_cache_v2_functional,
        kv.kv_rmsnorm_rope_cache_v2_functional_meta,
    ),
)
"""Every operator of the family."""
