"""Recorded schemas: they parse, and they are what an installed torch_npu lists."""

import os
from pathlib import Path

import pytest
import torch

from npudiff.device.contract.listing import LISTING, installed_folder, listed_schemas, read_file
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import (
    ALL_SCHEMAS,
    SCHEMAS,
    SCHEMAS_OF_OTHER_PACKAGES,
    namespace,
    qualified_name,
    unqualified,
)

LIBRARY = "lib/libtorch_npu.so"
ATB_LIBRARY = "lib/libop_plugin_atb.so"

OF_TORCH_NPU = tuple(schema for schema in SCHEMAS if namespace(schema) == "npu")


@pytest.mark.parametrize("schema", ALL_SCHEMAS, ids=qualified_name)
def test_schema_parses(schema):
    parsed = torch._C.parse_schema(f"{namespace(schema)}::{unqualified(schema)}")
    name, _, overload = qualified_name(schema).partition(".")
    assert (parsed.name, parsed.overload_name) == (f"{namespace(schema)}::{name}", overload)


def test_names_are_unique():
    assert len({(namespace(schema), qualified_name(schema)) for schema in ALL_SCHEMAS}) == len(ALL_SCHEMAS)


def test_every_operator_has_its_schema_recorded():
    assert sorted(operator.schema for operator in operators()) == sorted(ALL_SCHEMAS)


def test_operators_of_other_packages_are_named():
    """No wheel is asked for these, so none may be among them that is torch_npu's."""
    named = {package: [qualified_name(s) for s in schemas] for package, schemas in SCHEMAS_OF_OTHER_PACKAGES.items()}
    assert named == {
        "sgl-kernel-npu": [
            "mla_preprocess",
            "sgl_sparse_flash_attention",
            "causal_conv1d",
            "recurrent_gated_delta_rule",
            "chunk_gated_delta_rule",
            "sgemmv_shrink",
            "sgemmv_expand",
            "batch_matmul_transpose",
            "apply_token_bitmask",
            "build_tree_kernel_efficient",
            "cache_loc_update",
            "transfer_kv_dim_exchange",
            "transfer_state_per_layer_direct_pf_lf",
            "transfer_state_all_layer_direct_lf_pf",
        ],
        "vllm-ascend": ["npu_sparse_attention_score"] * 2,
    }


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        ("npu_fused_infer_attention_score", ("num_heads", "scale", "softmax_lse_flag", "actual_seq_lengths")),
        ("npu_fused_infer_attention_score_v2", ("num_query_heads", "softmax_scale", "learnable_sink")),
    ],
)
def test_versions_have_their_own_words(schema, names):
    parsed = torch._C.parse_schema("npu::" + next(s for s in SCHEMAS if qualified_name(s) == schema))
    assert set(names) <= {argument.name for argument in parsed.arguments}


@pytest.fixture
def wheel():
    """Give a function that reads one file of the package."""
    given = os.environ.get("NPUDIFF_TORCH_NPU_WHEEL")
    path = Path(given) if given else installed_folder()
    if path is None:
        pytest.skip("no torch_npu: install it, or set NPUDIFF_TORCH_NPU_WHEEL to a .whl or an unpacked wheel")
    return lambda name: read_file(path, name)


@pytest.mark.contract
def test_schemas_are_those_registered_by_the_library(wheel):
    library = wheel(LIBRARY)
    missing = [qualified_name(s) for s in OF_TORCH_NPU if library.find(b"\0" + unqualified(s).encode() + b"\0") < 0]
    assert missing == []


def listed(wheel):
    """Return the schemas of the yaml, as the library registers them."""
    return listed_schemas(wheel(LISTING).decode().splitlines())


@pytest.mark.contract
def test_schemas_are_those_of_the_yaml(wheel):
    assert {qualified_name(schema): schema for schema in OF_TORCH_NPU}.items() <= listed(wheel).items()


@pytest.mark.contract
def test_no_overload_is_missing(wheel):
    word = "fused_infer_attention_score"
    assert {name for name in listed(wheel) if word in name} == {qualified_name(s) for s in SCHEMAS if word in s}


@pytest.mark.contract
def test_operators_of_other_packages_are_not_in_the_wheel(wheel):
    listing = listed(wheel)
    library = wheel(LIBRARY)
    for schemas in SCHEMAS_OF_OTHER_PACKAGES.values():
        for schema in schemas:
            assert qualified_name(schema) not in listing
            assert library.find(f"\0{qualified_name(schema)}(".encode()) < 0


@pytest.mark.contract
def test_schemas_of_atb_are_in_its_library_in_pieces(wheel):
    """The compiler copies these strings with 16 byte constants, so the library has every whole piece somewhere.

    Where keyword arguments begin the dispatcher writes some otherwise than their authors did: there pieces are others.
    ``test_registered_schemas`` compares all of it, where torch_npu is imported.
    """
    library = wheel(ATB_LIBRARY)
    missing = []
    for schema in SCHEMAS:
        if namespace(schema) == "atb":
            text = unqualified(schema).partition(" *,")[0].encode()
            pieces = [text[start : start + 16] for start in range(0, len(text) - 15, 16)]
            missing += [piece for piece in pieces if library.find(piece) < 0]
    assert missing == []
