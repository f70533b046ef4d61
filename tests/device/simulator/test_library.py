"""Installation, shape kernels, and an import that costs nothing."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device import simulator
from npudiff.device.simulator.schemas import ALL_SCHEMAS, namespace, qualified_name, unqualified


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_is_light():
    code = "import sys, npudiff.device.simulator as s; s.PROFILES; assert 'torch' not in sys.modules"
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_install_defines_everything_once():
    simulator.install()
    simulator.install()
    for schema in ALL_SCHEMAS:
        name, _, overload = qualified_name(schema).partition(".")
        space = namespace(schema)
        operator = getattr(getattr(getattr(torch.ops, space), name), overload or "default")
        assert operator._schema == torch._C.parse_schema(f"{space}::{unqualified(schema)}")


def test_install_adds_kernels_to_operators_that_exist():
    """As with torch_npu imported first: its definitions and shape rules stay. What it has not is defined."""
    code = """
import torch
from npudiff.device.simulator.schemas import SCHEMAS, namespace, unqualified
theirs = {space: torch.library.Library(space, "DEF") for space in set(map(namespace, SCHEMAS))}
for schema in SCHEMAS:
    theirs[namespace(schema)].define(unqualified(schema))
from npudiff.device import simulator
simulator.install()
q = torch.ones(1, 1, 16, dtype=torch.bfloat16)
out, lse = torch.ops.npu.npu_fused_infer_attention_score(q, q, q)
assert out.tolist() == q.tolist()
assert torch._C._dispatch_has_kernel_for_dispatch_key("npu::npu_fused_infer_attention_score", "CPU")
assert not torch._C._dispatch_has_kernel_for_dispatch_key("npu::npu_fused_infer_attention_score", "Meta")
assert torch._C._dispatch_has_kernel_for_dispatch_key("npu::mla_preprocess", "Meta")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def calls(lab):
    """Yield (version, arguments) of every simulated layout, paged and not, with and without LSE."""
    for layout in ("BSH", "BSND", "BNSD", "TND"):
        for block_size in (0, 128):
            for dims in ((128, 128), (192, 128)):
                sequences = lab.ragged([2, 3], [4, 9], dim=dims[0], value_dim=dims[1])
                for version in (1, 2):
                    for lse in (False, True):
                        arguments = lab.pack(sequences, layout, version=version, block_size=block_size)
                        yield version, arguments | {lab.names[version]["lse"]: lse}


def shapes(outputs):
    return [(tuple(t.shape), t.dtype) for t in outputs]


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shape_kernels_agree_with_eager(lab, kind):
    count = 0
    for version, arguments in calls(lab):
        flag = lab.names[version]["lse"]
        lse = arguments.pop(flag)
        eager = lab.call(arguments, version=version, lse=lse)
        if kind == "meta":
            moved = {n: a.to("meta") if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}
            inferred = lab.call(moved, version=version, lse=lse)
        else:
            with FakeTensorMode() as mode:
                moved = {n: mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for n, a in arguments.items()}
                inferred = lab.call(moved, version=version, lse=lse)
        assert shapes(inferred) == shapes(eager)
        count += 1
    assert count == 64


@pytest.mark.parametrize(
    ("layout", "query", "output", "lse"),
    [
        ("BSH", (2, 3, 64), (2, 3, 64), (2, 4, 3, 1)),
        ("NTD", (4, 3, 16), (4, 3, 16), (3, 4, 1)),
        ("NSD", (4, 3, 16), (4, 3, 16), (1, 4, 3, 1)),
        ("BNSD_BSND", (2, 4, 3, 16), (2, 3, 4, 16), (2, 4, 3, 1)),
        ("BSH_BNSD", (2, 3, 64), (2, 4, 3, 16), (2, 4, 3, 1)),
        ("BSND_BNSD", (2, 3, 4, 16), (2, 4, 3, 16), (2, 4, 3, 1)),
        ("BSH_NBSD", (2, 3, 64), (4, 2, 3, 16), (2, 4, 3, 1)),
        ("BSND_NBSD", (2, 3, 4, 16), (4, 2, 3, 16), (2, 4, 3, 1)),
        ("BNSD_NBSD", (2, 4, 3, 16), (4, 2, 3, 16), (2, 4, 3, 1)),
        ("TND_NTD", (3, 4, 16), (4, 3, 16), (3, 4, 1)),
        ("NTD_TND", (4, 3, 16), (3, 4, 16), (3, 4, 1)),
    ],
)
def test_shapes_of_every_layout_name(layout, query, output, lse):
    """The shape rules know all layouts, also those that are not computed."""
    q = torch.empty(query, dtype=torch.bfloat16, device="meta")
    inferred = torch.ops.npu.npu_fused_infer_attention_score_v2(
        q, q, q, num_query_heads=4, input_layout=layout, return_softmax_lse=True
    )
    assert [tuple(t.shape) for t in inferred] == [output, lse]


@pytest.mark.parametrize(
    ("cache", "dim"),
    [((5, 128, 64), 32), ((5, 2, 128, 32), 32), ((5, 2, 2, 128, 16), 32)],
    ids=["3d", "4d", "nz"],
)
def test_value_head_dim_of_paged_caches(cache, dim):
    q, kv = torch.empty(3, 4, 48, device="meta"), torch.empty(cache, device="meta")
    table = torch.empty(1, 1, dtype=torch.int32, device="meta")
    output, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
        q,
        kv,
        kv,
        num_query_heads=4,
        num_key_value_heads=2,
        input_layout="TND",
        block_table=table,
        block_size=128,
    )
    assert tuple(output.shape) == (3, 4, dim)


@pytest.mark.parametrize(
    ("version", "query_dtype", "more", "dtype"),
    [
        (1, torch.bfloat16, {"quant_scale2": torch.empty(1, device="meta")}, torch.int8),
        (1, torch.int8, {}, torch.float16),
        (
            2,
            torch.int8,
            {"query_rope": torch.empty(3, 4, 64, dtype=torch.bfloat16, device="meta")},
            torch.bfloat16,
        ),
        (2, torch.float16, {"quant_scale_out": torch.empty(1, device="meta")}, torch.int8),
    ],
)
def test_dtypes_of_quantised_outputs(lab, version, query_dtype, more, dtype):
    q = torch.empty(3, 4, 64, dtype=query_dtype, device="meta")
    arguments = {"query": q, "key": q, "value": q, "input_layout": "TND", lab.names[version]["heads"]: 4}
    assert lab.call(arguments | more, version=version)[0].dtype == dtype
