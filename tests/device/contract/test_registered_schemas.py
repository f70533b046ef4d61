"""Every schema that the simulator records is the one with which torch_npu registers the operator; atb's too."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.contract.shapes import has_meta_function, is_of_torch_npu, registered_schemas
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import (
    SCHEMAS,
    SCHEMAS_OF_OTHER_PACKAGES,
    namespace,
    qualified_name,
    unqualified,
)

WITHOUT_META = {
    "npu::npu_fused_infer_attention_score.out": "writes into what it is given",
    "npu::npu_fused_infer_attention_score_v2.out": "writes into what it is given",
    "npu::_npu_fused_infer_attention_score_get_max_workspace": "asks the device for a size in bytes",
    "npu::_npu_fused_infer_attention_score_v2_get_max_workspace": "asks the device for a size in bytes",
    "npu::_npu_fused_infer_attention_score_infer_output": "is a shape function itself, on the device's tensors",
    "npu::_npu_fused_infer_attention_score_v2_infer_output": "is a shape function itself, on the device's tensors",
    "atb::_npu_paged_attention": "returns nothing",
    "atb::_npu_paged_attention_get_workspace": "asks the device for a size in bytes",
    "atb::_npu_paged_attention_mla": "returns nothing",
    "atb::_npu_paged_attention_splitfuse": "returns nothing",
    "atb::_npu_flash_attention_qlens": "returns nothing",
    "atb::_npu_flash_attention": "returns nothing",
    "atb::_npu_flash_attention_v3": "returns nothing",
    "atb::_npu_flash_attention_unpad": "returns nothing",
    "atb::_npu_flash_attention_unpad_v2": "returns nothing",
    "atb::_npu_reshape_and_cache": "returns nothing",
    "atb::_npu_reshape_and_cache_siso": "returns nothing",
    "atb::_npu_rotary_embedding": "returns nothing",
    "atb::_npu_matmul_add_fp32": "returns nothing",
    "npu::npu_gather_pa_kv_cache": "returns nothing; the functional form has one",
    "npu::npu_format_cast": "storage formats exist on the device only",
    "npu::npu_format_cast.Tensor": "storage formats exist on the device only",
    "npu::npu_format_cast_": "storage formats exist on the device only",
    "npu::npu_format_cast_.acl_format": "storage formats exist on the device only",
    "npu::get_npu_format": "storage formats exist on the device only",
    "npu::npu_convert_weight_to_int4pack": "the wheel has none",
    "npu::npu_moe_init_routing_quant": "the wheel has none",
    "npu::npu_dual_level_quant_matmul": "the wheel has none",
    "npu::npu_advance_step_flashattn": "returns nothing",
    "npu::one_": "the wheel has none",
    "npu::npu_silu_": "the wheel has none",
    "npu::npu_mish": "the wheel has none",
    "npu::npu_mish_backward": "the wheel has none",
    "npu::npu_broadcast": "the wheel has none",
    "npu::npu_confusion_transpose": "the wheel has none",
    "npu::npu_confusion_transpose_backward": "the wheel has none",
    "npu::npu_slice": "the wheel has none",
    "npu::npu_indexing": "the wheel has none",
    "npu::npu_pad": "the wheel has none",
    "npu::npu_one_hot": "the wheel has none",
    "npu::npu_sort_v2": "the wheel has none",
    "npu::npu_max.dim": "the wheel has none",
    "npu::npu_min.dim": "the wheel has none",
    "npu::npu_max_backward": "the wheel has none",
    "npu::npu_min_backward": "the wheel has none",
    "npu::npu_sign_bits_pack": "the wheel has none",
    "npu::npu_sign_bits_unpack": "the wheel has none",
    "npu::npu_bmm_v2_mat1_backward": "the wheel has none",
    "npu::npu_bmm_v2_mat2_backward": "the wheel has none",
}
"""Operators of torch_npu without a shape function, and what speaks for that; the shapes of these are not compared."""

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("torch_npu")]


def full_name(schema):
    return f"{namespace(schema)}::{qualified_name(schema)}"


@pytest.mark.parametrize("schema", SCHEMAS, ids=qualified_name)
def test_torch_npu_registers_exactly_this_schema(schema):
    operator = full_name(schema).partition(".")[0]
    written = str(torch._C.parse_schema(f"{namespace(schema)}::{unqualified(schema)}"))
    overload = [one for one in registered_schemas(operator) if one.partition("(")[0] == full_name(schema)]
    assert overload == [written]
    assert is_of_torch_npu(full_name(schema))


def test_every_simulated_operator_is_asked_about():
    others = {schema for schemas in SCHEMAS_OF_OTHER_PACKAGES.values() for schema in schemas}
    assert {operator.schema for operator in operators()} - others == set(SCHEMAS)


def test_operators_of_other_packages_are_not_torch_npus():
    for schemas in SCHEMAS_OF_OTHER_PACKAGES.values():
        for schema in schemas:
            assert not is_of_torch_npu(full_name(schema))


def test_every_other_operator_has_a_shape_function():
    assert {full_name(one) for one in SCHEMAS if not has_meta_function(full_name(one))} == set(WITHOUT_META)
