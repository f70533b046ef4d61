"""What stands before MLA attention, as sglang's Ascend backend runs it: fused operators, or one after the other.

Source: sglang 0.5.23, ``hardware_backend/npu/attention/mla_preprocess.py``: the prolog operator (600-652), and the path
of norms and caches (455-477 and 688-707).
"""

from __future__ import annotations

import torch

from npudiff import Target, implementation
from npudiff.device.ascend.kv_rmsnorm_rope_cache import half_tables, normalised, turned, write_at
from npudiff.model.constraints import Box
from npudiff.reference.mla_preprocess import MlaPreprocessInputs

Outputs = dict[str, torch.Tensor]

DIMS: Box = {"dims": ("128/64/512",)}
NO_SKIPPING: Box = {"padding": ("slot 0",)}
"""No source says what the fused operators do with a negative slot."""

PROLOG: Box = {
    **DIMS,
    **NO_SKIPPING,
    "query_rank": (1536,),
    "heads": (1, 2, 4, 8, 16, 32, 64, 128),
    "page_size": (16, 128),
    "quantised": (False,),
}
"""Sizes that the prolog operators are made for."""

ND: Box = {"layout": ("PA_BSND",)}
NZ: Box = {"layout": ("PA_NZ",)}


def tables(inputs: MlaPreprocessInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the tokens, ``[tokens, rope_dim]`` each."""
    return half_tables(inputs.cos_sin_cache, inputs.positions)


def declared(inputs: MlaPreprocessInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent and rope cache with the shape that the operators declare in every mode: ``[pages, page_size, 1, dim]``."""
    pages = inputs.latent_cache.shape[0]
    latent, rope = (cache.view(pages, inputs.page_size, 1, -1) for cache in (inputs.latent_cache, inputs.rope_cache))
    return latent, rope


def caches(inputs: MlaPreprocessInputs) -> Outputs:
    """The caches, after an operator wrote into them in place."""
    return {"rope_cache": inputs.rope_cache, "latent_cache": inputs.latent_cache}


def prolog_v3(inputs: MlaPreprocessInputs, cache_mode: str) -> Outputs:
    """Run npu_mla_prolog_v3: sines come before cosines, and the latent cache before that of the rope key."""
    cosine, sine = tables(inputs)
    query, rope, *_ = torch.ops.npu.npu_mla_prolog_v3(
        inputs.hidden,
        inputs.q_a_weight,
        inputs.q_b_weight,
        inputs.k_up_weight,
        inputs.kv_a_weight,
        inputs.q_a_norm,
        inputs.kv_a_norm,
        sine,
        cosine,
        *declared(inputs),
        cache_index=inputs.slots,
        rmsnorm_epsilon_cq=inputs.epsilon,
        rmsnorm_epsilon_ckv=inputs.epsilon,
        cache_mode=cache_mode,
    )
    return {"query_nope": query, "query_rope": rope, **caches(inputs)}


@implementation(
    "mla_preprocess", supports={**PROLOG, **ND, "hidden_size": (6144, 7168, 7680)}, on_device=True, graph=True
)
def npu_mla_prolog_v3(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """npu_mla_prolog_v3 on ND caches, unquantised."""
    return prolog_v3(inputs, "PA_BSND")


@implementation(
    "mla_preprocess", supports={**PROLOG, **NZ, "hidden_size": (6144, 7168, 7680)}, on_device=True, graph=True
)
def npu_mla_prolog_v3_nz(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """npu_mla_prolog_v3 on NZ caches, unquantised."""
    return prolog_v3(inputs, "PA_NZ")


@implementation("mla_preprocess", supports={**PROLOG, "hidden_size": (7168,)}, on_device=True, graph=True)
def npu_mla_prolog_v2(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """npu_mla_prolog_v2, unquantised: the index comes before the caches, which are returned as well."""
    cosine, sine = tables(inputs)
    latent, rope = declared(inputs)
    query, query_rope, *_ = torch.ops.npu.npu_mla_prolog_v2(
        inputs.hidden,
        inputs.q_a_weight,
        inputs.q_b_weight,
        inputs.k_up_weight,
        inputs.kv_a_weight,
        inputs.q_a_norm,
        inputs.kv_a_norm,
        sine,
        cosine,
        inputs.slots,
        latent,
        rope,
        rmsnorm_epsilon_cq=inputs.epsilon,
        rmsnorm_epsilon_ckv=inputs.epsilon,
        cache_mode=inputs.layout,
    )
    return {"query_nope": query, "query_rope": query_rope, **caches(inputs)}


@implementation("mla_preprocess", supports=DIMS, on_device=True, graph=True)
def rms_norm_cache_path(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Products, norms and rotation one after the other, and npu_kv_rmsnorm_rope_cache for the caches."""
    normed, _ = torch.ops.npu.npu_rms_norm(rounded(inputs.hidden, inputs.q_a_weight), inputs.q_a_norm,
                                           inputs.epsilon)  # fmt: skip
    return after_query_norm(inputs, normed)


def after_query_norm(inputs: MlaPreprocessInputs, normed: torch.Tensor) -> Outputs:
    """What follows the norm of the query's latent ``[tokens, query_rank]``, and the way of the keys."""
    queries = rounded(normed, inputs.q_b_weight).view(len(normed), inputs.heads, -1)
    nope, rope = queries[..., : inputs.nope_dim], queries[..., inputs.nope_dim :]
    absorbed = rounded(nope.transpose(0, 1), inputs.k_up_weight).transpose(0, 1)
    cosine, sine = (table[:, None, None, :] for table in tables(inputs))
    turned = torch.ops.npu.npu_interleave_rope(rope.unsqueeze(2).contiguous(), cosine, sine).squeeze(2)
    write_keys(inputs, "PA_NZ" if inputs.layout == "PA_NZ" else "PA_BNSD")
    return {"query_nope": absorbed, "query_rope": turned, **caches(inputs)}


def write_keys(inputs: MlaPreprocessInputs, cache_mode: str) -> None:
    """Compress keys and values, and write latent and rope key with npu_kv_rmsnorm_rope_cache."""
    compressed = rounded(inputs.hidden, inputs.kv_a_weight)[:, None, None, :]
    cosine, sine = (table[:, None, None, :] for table in tables(inputs))
    latent, rope = declared(inputs)
    torch.ops.npu.npu_kv_rmsnorm_rope_cache(
        compressed,
        inputs.kv_a_norm,
        cosine,
        sine,
        inputs.slots,
        rope,
        latent,
        epsilon=inputs.epsilon,
        cache_mode=cache_mode,
    )


def rounded(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product that is accumulated in float32 and rounded once, as a device's is; on a CPU torch.matmul may differ."""
    return (rows.float() @ weight.float()).to(rows.dtype)


@implementation("mla_preprocess", on_device=True)
def native_mla_preprocess(inputs: MlaPreprocessInputs, target: Target) -> Outputs:
    """Composed of plain torch operators: the path without fused ones."""
    normed = normalised(rounded(inputs.hidden, inputs.q_a_weight), inputs.q_a_norm, inputs.epsilon)
    queries = rounded(normed, inputs.q_b_weight).view(len(normed), inputs.heads, -1)
    nope, rope = queries[..., : inputs.nope_dim], queries[..., inputs.nope_dim :]
    absorbed = rounded(nope.transpose(0, 1), inputs.k_up_weight).transpose(0, 1)
    keys = rounded(inputs.hidden, inputs.kv_a_weight)
    latent = normalised(keys[:, : inputs.latent_dim], inputs.kv_a_norm, inputs.epsilon)
    cos_sin = inputs.cos_sin_cache[inputs.positions]
    write(inputs, inputs.latent_cache, latent)
    write(inputs, inputs.rope_cache, turned(keys[:, inputs.latent_dim :], cos_sin))
    return {"query_nope": absorbed, "query_rope": turned(rope, cos_sin.unsqueeze(1)), **caches(inputs)}


def write(inputs: MlaPreprocessInputs, cache: torch.Tensor, rows: torch.Tensor) -> None:
    """Write rows ``[tokens, dim]`` at the slots that are not negative."""
    write_at(inputs.slots, cache, rows, inputs.page_size, inputs.layout)
