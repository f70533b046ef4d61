"""The schemas of all simulated operators, as torch_npu 2.13.0 and other packages register them.

A schema is written as the dispatcher sees it, ``name[.overload](arguments) -> returns``. A namespace other than ``npu``
stands in front, as in ``atb::_npu_reshape_and_cache(...)``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from npudiff.device.simulator.activation.schemas import SCHEMAS as ACTIVATION
from npudiff.device.simulator.atb_attention.schemas import SCHEMAS as ATB_ATTENTION
from npudiff.device.simulator.block_scaled.schemas import SCHEMAS as BLOCK_SCALED
from npudiff.device.simulator.cache.schemas import OF_SGL_KERNEL_NPU as SGL_CACHE
from npudiff.device.simulator.cache.schemas import SCHEMAS as CACHE
from npudiff.device.simulator.elementary.schemas import SCHEMAS as ELEMENTARY
from npudiff.device.simulator.fused_attention.schemas import SCHEMAS as FUSED_ATTENTION
from npudiff.device.simulator.grouped_matmul.schemas import SCHEMAS as GROUPED_MATMUL
from npudiff.device.simulator.linear_attention.schemas import OF_SGL_KERNEL_NPU as SGL_LINEAR_ATTENTION
from npudiff.device.simulator.linear_attention.schemas import SCHEMAS as LINEAR_ATTENTION
from npudiff.device.simulator.lora.schemas import OF_SGL_KERNEL_NPU as SGL_LORA
from npudiff.device.simulator.matmul.schemas import OF_SGL_KERNEL_NPU as SGL_MATMUL
from npudiff.device.simulator.matmul.schemas import SCHEMAS as MATMUL
from npudiff.device.simulator.mla.schemas import OF_SGL_KERNEL_NPU as SGL_MLA
from npudiff.device.simulator.mla.schemas import SCHEMAS as MLA
from npudiff.device.simulator.moe.schemas import SCHEMAS as MOE
from npudiff.device.simulator.norms.schemas import SCHEMAS as NORMS
from npudiff.device.simulator.quantisation.schemas import SCHEMAS as QUANTISATION
from npudiff.device.simulator.rotary.schemas import SCHEMAS as ROTARY
from npudiff.device.simulator.sampling.schemas import OF_SGL_KERNEL_NPU as SGL_SAMPLING
from npudiff.device.simulator.sampling.schemas import SCHEMAS as SAMPLING
from npudiff.device.simulator.sparse_attention.schemas import OF_SGL_KERNEL_NPU as SGL_SPARSE_ATTENTION
from npudiff.device.simulator.sparse_attention.schemas import OF_VLLM_ASCEND
from npudiff.device.simulator.sparse_attention.schemas import SCHEMAS as SPARSE_ATTENTION
from npudiff.device.simulator.speculative.schemas import OF_SGL_KERNEL_NPU as SGL_SPECULATIVE
from npudiff.device.simulator.speculative.schemas import SCHEMAS as SPECULATIVE

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMAS = (
    *FUSED_ATTENTION, *ATB_ATTENTION, *CACHE, *ROTARY, *NORMS, *MLA, *ACTIVATION, *QUANTISATION, *MOE, *GROUPED_MATMUL,
    *MATMUL, *BLOCK_SCALED, *SAMPLING, *SPARSE_ATTENTION, *LINEAR_ATTENTION, *ELEMENTARY, *SPECULATIVE,
)  # fmt: skip
"""Every schema of torch_npu that the simulator can define."""

SCHEMAS_OF_OTHER_PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "sgl-kernel-npu": (
        *SGL_MLA, *SGL_SPARSE_ATTENTION, *SGL_LINEAR_ATTENTION, *SGL_LORA, *SGL_MATMUL, *SGL_SAMPLING, *SGL_SPECULATIVE,
        *SGL_CACHE,
    ),
    "vllm-ascend": OF_VLLM_ASCEND,
})  # fmt: skip
"""Schemas that other packages than torch_npu register, by package.

They were written from that package's sources. No wheel is compared with them, so they are recorded, not proved.
"""

ALL_SCHEMAS = (*SCHEMAS, *(schema for schemas in SCHEMAS_OF_OTHER_PACKAGES.values() for schema in schemas))
"""Every schema that the simulator can define."""

DEFAULT_NAMESPACE = "npu"


def namespace(schema: str) -> str:
    """Return the namespace of a schema string."""
    before, separator, _ = schema.partition("(")[0].partition("::")
    return before if separator else DEFAULT_NAMESPACE


def qualified_name(schema: str) -> str:
    """Return ``name`` or ``name.overload`` of a schema string, without its namespace."""
    return schema.partition("(")[0].rpartition("::")[2]


def unqualified(schema: str) -> str:
    """Return a schema string without its namespace."""
    return schema.removeprefix(f"{namespace(schema)}::")
