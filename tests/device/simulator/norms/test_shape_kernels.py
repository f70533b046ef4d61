"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu
KV = "npu_kv_rmsnorm_rope_cache"


def calls(kv):
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.ones(2, 3, 16, dtype=dtype)
        for gamma in (x[0, 0], x[0], x[0].float()):
            for name in ("npu_rms_norm", "npu_add_rms_norm", "npu_add_rms_norm_v2", "npu_add_rms_norm_v2_functional"):
                yield name, ((x, gamma) if name == "npu_rms_norm" else (x, x.clone(), gamma)), {}
            if gamma.dtype == dtype:
                yield "npu_gemma_rms_norm", (x, gamma), {}
        for version in ("", "_v2", "_v2_functional"):
            for mode, index in (("PA_NZ", torch.arange(6)), ("PA_BLK_BNSD", torch.tensor([0, 4]))):
                inputs = (*kv.inputs(2, 3, dtype=dtype), index, *kv.caches(3, 4, dtype=dtype))
                yield KV + version, inputs, {"cache_mode": mode, "is_output_kv": mode == "PA_NZ"}


def shapes(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shape_kernels_agree_with_eager(kv, kind):
    count = 0
    for name, arguments, more in calls(kv):
        eager = shapes(getattr(OPS, name)(*arguments, **more))
        mode = FakeTensorMode()
        move = mode.from_tensor if kind == "fake" else lambda t: t.to("meta")
        with mode if kind == "fake" else torch.no_grad():
            inferred = getattr(OPS, name)(*map(move, arguments), **more)
        assert shapes(inferred) == eager, name
        count += 1
    assert count == 2 * (3 * 4 + 2 + 6)


def test_shapes_with_v(kv):
    """META: with v, the outputs are as wide as kv and v."""
    inputs = [t.to("meta") for t in (*kv.inputs(2, 3), torch.arange(6), *kv.caches(3, 4))]
    inputs[0], v = inputs[0][..., :192], torch.empty(2, 1, 3, 128, device="meta")
    rope, latent = OPS.npu_kv_rmsnorm_rope_cache_v2(*inputs, v=v)
    assert (tuple(rope.shape), tuple(latent.shape)) == ((2, 1, 3, 192), (2, 1, 3, 128))


def test_meta_checks_ranks_as_torch_npu_does(kv):
    inputs = [t.to("meta") for t in (*kv.inputs(2, 3), torch.arange(6), *kv.caches(3, 4))]
    inputs[0] = inputs[0][0]
    with pytest.raises(OperatorRejected, match=r"kv was of rank 3, \[1, 3, 576\]; allowed: rank 4"):
        OPS.npu_kv_rmsnorm_rope_cache(*inputs)
