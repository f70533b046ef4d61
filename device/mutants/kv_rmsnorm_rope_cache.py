"""Wrong writes of MLA's latents and rope keys."""

from __future__ import annotations

from dataclasses import replace

import torch

import npudiff
from npudiff import Target
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


@npudiff.implementation(
    "kv_rmsnorm_rope_cache",
    name="nz_cache_written_as_nd",
    supports=_NZ,
    mutant_of="decode_pa_nz",
    wrong="PKV-04 https://github.com/vllm-project/vllm-ascend/pull/2988: decode writes ND into a cache that is read NZ",
)
def nz_cache_written_as_nd(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Mode PA_BNSD for caches in strips."""
    on_device = inputs.to(target.device)
    return decode(on_device, fused_call(on_device, "PA_BNSD", on_device.slots.flatten()))


@npudiff.implementation(
    "kv_rmsnorm_rope_cache",
    name="cache_mode_is_a_tuple",
    supports=_NZ,
    mutant_of="decode_pa_nz",
    wrong="PKV-05 https://github.com/sgl-project/sglang/pull/14423: a comma after the mode makes it a tuple",
)
def cache_mode_is_a_tuple(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """The mode with a trailing comma."""
    on_device = inputs.to(target.device)
    call = fused_call(on_device, "PA_NZ", on_device.slots.flatten())
    return decode(on_device, call.having(cache_mode=("PA_NZ",)))


@npudiff.implementation(
    "kv_rmsnorm_rope_cache",
    name="outputs_that_were_not_asked_for",
    supports=prefill_pa.constraints.boxes,
    mutant_of="prefill_pa",
    wrong="PKV-04 https://github.com/vllm-project/vllm-ascend/pull/2988: the wrong return values are used",
)
def outputs_that_were_not_asked_for(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Use the third and fourth return value without is_output_kv, which leaves them unwritten."""
    on_device = inputs.to(target.device)
    call = fused_call(on_device, "PA", on_device.slots.flatten())
    _, _, rope, latent = torch.ops.npu.npu_kv_rmsnorm_rope_cache(*call.tensors, **call.options)
    return {"rope": rope.squeeze(1), "latent": latent.squeeze(1), **caches(on_device)}


@npudiff.implementation(
    "kv_rmsnorm_rope_cache",
    name="rope_key_read_as_halves",
    mutant_of="native_mla_write",
    wrong="MLA-01 https://github.com/vllm-project/vllm-ascend/pull/3857: the reorder of the rope rows is left out",
)
def rope_key_read_as_halves(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Rotate pairs of halves although pairs are neighbours."""
    rope = torch.stack(inputs.kv[..., inputs.latent_dim :].chunk(2, dim=-1), dim=-1).flatten(-2)
    kv = torch.cat([inputs.kv[..., : inputs.latent_dim], rope], dim=-1)
    return native_mla_write(replace(inputs, kv=kv), target)  # type: ignore[no-any-return]


@npudiff.implementation(
    "kv_rmsnorm_rope_cache",
    name="latent_with_the_stride_of_its_output",
    mutant_of="native_mla_write",
    wrong="NRM-05 https://github.com/NVIDIA/TensorRT-LLM/pull/12089: a slice is read with the stride of the result",
)
def latent_with_the_stride_of_its_output(inputs: KvRmsnormRopeCacheInputs, target: Target) -> Outputs:
    """Take the latents for contiguous, although each is followed by its rope key."""
    on_device = inputs.to(target.device)
    batch, length, _ = on_device.kv.shape
    states = on_device.kv.flatten()[: batch * length * on_device.latent_dim].view(batch, length, -1)
    keys = on_device.kv[..., on_device.latent_dim :]
    latent = normalised(states, on_device.weight, on_device.epsilon)
    return written(on_device, latent, turned(keys, on_device.cos_sin_cache[on_device.positions]))
