"""Meta kernels give the shapes and dtypes of the CPU kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator import OperatorRejected

OPS = torch.ops.npu
VERSIONS = ["", "_v2", "_v3", "_v3_functional"]


def shapes(outputs):
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.few(21)
@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tokens", [(3,), (2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("placeholders", ["empty", "one_zero"])
def test_shape_kernels_agree_with_eager(mla, kind, version, tokens, placeholders):
    given, both = mla.inputs(tokens), mla.caches()
    index = torch.zeros(tokens, dtype=torch.int64)
    mode = FakeTensorMode()
    move = mode.from_tensor if kind == "fake" else lambda tensor: tensor.to("meta")
    for flag in (False, True) if "v3" in version else (None,):
        more = {} if flag is None else {"query_norm_flag": flag}
        with mla.changed(mla_prolog_placeholders=placeholders):
            eager = mla.call(given, index, both, version, **more).tuple
            moved = {name: move(tensor) for name, tensor in given.items()}
            with mode if kind == "fake" else torch.no_grad():
                inferred = mla.call(moved, move(index), [move(cache) for cache in both], version, **more).tuple
        assert shapes(inferred) == shapes(eager)


def on_meta(mla, tokens=(3,)):
    return {name: tensor.to("meta") for name, tensor in mla.inputs(tokens).items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_meta_checks_ranks_as_torch_npu_does(mla, version):
    both = [cache.to("meta") for cache in mla.caches()]
    index = torch.empty(3, dtype=torch.int64, device="meta")
    for name, shape, message in (
        ("token_x", (64,), "token_x was of rank 1; allowed: rank 2"),
        ("weight_uk", (32, 32), r"weight_uk was of rank 2, \[32, 32\]; allowed: rank 3"),
        ("rope_sin", (16,), "rope_sin was of rank 1"),
    ):
        given = on_meta(mla) | {name: torch.empty(shape, device="meta")}
        with pytest.raises(OperatorRejected, match=message):
            mla.call(given, index, both, version)
    given = on_meta(mla, (2, 2)) | {"rope_sin": torch.empty(4, 16, device="meta")}
    with pytest.raises(OperatorRejected, match="rope_sin was of rank 2; allowed: the rank of token_x, 3"):
        mla.call(given, index, both, version)


def test_shapes_of_quantised_calls_of_version_2(mla):
    given = on_meta(mla, (2, 2))
    given["token_x"] = given["token_x"].to(torch.int8)
    both = [cache.to("meta") for cache in mla.caches()]
    index = torch.empty(2, 2, dtype=torch.int64, device="meta")
    result = mla.call(given, index, both, "_v2", quant_scale_ckv=torch.empty(1, 32, device="meta"))
    assert shapes([result.query, result.scale_nope]) == [((2, 2, 2, 32), torch.int8), ((4, 2, 1), torch.float32)]
    result = mla.call(given, index, both, "_v2")
    assert shapes([result.query, result.scale_nope]) == [((2, 2, 2, 32), torch.bfloat16), ((1,), torch.float32)]
