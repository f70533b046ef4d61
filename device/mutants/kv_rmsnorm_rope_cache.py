"""Wrong writes of MLA's latents and rope keys."""

from __future__ import annotations

from dataclasses import replace

import torch

from npudiff import Target, mutant, perturbed
from npudiff.device.ascend.kv_rmsnorm_rope_cache import (
    Outputs,
    caches,
    decode,
    decode_pa_nz,
    fused_call,
    native_mla_write,
    normalised,
    prefill_pa,
    turned,
    written,
)
from npudiff.reference.kv_rmsnorm_rope_cache import KvRmsnormRopeCacheInputs

_NZ = decode_pa_nz.constraints.boxes


@mutant(decode_pa_nz, "PKV-04 vllm-project/vllm-ascend/pull/2988: decode writes ND into a cache that is read NZ")
def nz_cache_written_as_nd(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_BNSD for caches in strips."""
    return decode(inputs, fused_call(inputs, "PA_BNSD", inputs.slots.flatten()))


@mutant(decode_pa_nz, "PKV-05 sgl-project/sglang/pull/14423: a comma after the mode makes it a tuple")
def cache_mode_is_a_tuple(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """The mode with a trailing comma."""
    call = fused_call(inputs, "PA_NZ", inputs.slots.flatten())
    return decode(inputs, call.having(cache_mode=("PA_NZ",)))


@mutant(prefill_pa, "PKV-04 vllm-project/vllm-ascend/pull/2988: the wrong return values are used")
def outputs_that_were_not_asked_for(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Use the third and fourth return value without is_output_kv, which leaves them unwritten."""
    call = fused_call(inputs, "PA", inputs.slots.flatten())
    _, _, rope, latent = torch.ops.npu.npu_kv_rmsnorm_rope_cache(*call.tensors, **call.options)
    return {"rope": rope.squeeze(1), "latent": latent.squeeze(1), **caches(inputs)}


@perturbed(native_mla_write, "MLA-01 vllm-project/vllm-ascend/pull/3857: the reorder of the rope rows is left out")
def rope_key_read_as_halves(inputs: KvRmsnormRopeCacheInputs) -> KvRmsnormRopeCacheInputs:
    """Rotate pairs of halves although pairs are neighbours."""
    rope = torch.stack(inputs.kv[..., inputs.latent_dim :].chunk(2, dim=-1), dim=-1).flatten(-2)
    kv = torch.cat([inputs.kv[..., : inputs.latent_dim], rope], dim=-1)
    return replace(inputs, kv=kv)


@mutant(native_mla_write, "NRM-05 NVIDIA/TensorRT-LLM/pull/12089: a slice is read with the stride of the result")
def latent_with_the_stride_of_its_output(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Take the latents for contiguous, although each is followed by its rope key."""
    batch, length, _ = inputs.kv.shape
    states = inputs.kv.flatten()[: batch * length * inputs.latent_dim].view(batch, length, -1)
    keys = inputs.kv[..., inputs.latent_dim :]
    latent = normalised(states, inputs.weight, inputs.epsilon)
    return written(inputs, latent, turned(keys, inputs.cos_sin_cache[inputs.positions]))
