"""Recorded schemas: they parse, and they are what an installed torch_npu lists."""

import importlib.util
import mmap
import os
import zipfile
from pathlib import Path

import pytest
import torch

from device.simulator.library import operators
from device.simulator.schemas import (
    ALL_SCHEMAS,
    SCHEMAS,
    SCHEMAS_OF_OTHER_PACKAGES,
    namespace,
    qualified_name,
    unqualified,
)

YAML = "csrc/aten/npu_native_functions_by_codegen.yaml"
LIBRARY = "lib/libtorch_npu.so"
ATB_LIBRARY = "lib/libop_plugin_atb.so"

# How the yaml listing writes what the library registers for the .out overloads.
YAML_OUT = "Tensor(a!) attention_out, Tensor(b!) softmax_lse) -> (Tensor(a!), Tensor(b!))"
REGISTERED_OUT = "Tensor[] out) -> (Tensor, Tensor)"

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
    assert named == {"sgl-kernel-npu": ["mla_preprocess"]}


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


def _package_folder():
    """Return an unpacked torch_npu folder, or a .whl file, without importing anything of it."""
    given = os.environ.get("NPUDIFF_TORCH_NPU_WHEEL")
    if given:
        path = Path(given)
        return path / "torch_npu" if (path / "torch_npu").is_dir() else path
    spec = importlib.util.find_spec("torch_npu")
    return Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None


@pytest.fixture
def wheel():
    """Give a function that reads one file of the package."""
    folder = _package_folder()
    if folder is None:
        pytest.skip("no torch_npu: install it, or set NPUDIFF_TORCH_NPU_WHEEL to a .whl or an unpacked wheel")
    if not folder.exists():
        pytest.fail(f"NPUDIFF_TORCH_NPU_WHEEL names {folder}, which does not exist")

    def read(name):
        if folder.is_dir():
            with (folder / name).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with zipfile.ZipFile(folder) as archive:
            return archive.read(f"torch_npu/{name}")

    return read


@pytest.mark.contract
def test_schemas_are_those_registered_by_the_library(wheel):
    library = wheel(LIBRARY)
    missing = [qualified_name(s) for s in OF_TORCH_NPU if library.find(b"\0" + unqualified(s).encode() + b"\0") < 0]
    assert missing == []


def functions(listing):
    """Return every schema of the yaml; its entries begin with the schema or with another key."""
    lines = bytes(listing).decode().splitlines()
    return {line.removeprefix("- ").strip().removeprefix("func: ") for line in lines if "func: " in line}


@pytest.mark.contract
def test_schemas_are_those_of_the_yaml_but_for_the_form_of_out_and_the_word_self(wheel):
    listed = functions(wheel(YAML))
    for schema in OF_TORCH_NPU:
        written = schema.replace(REGISTERED_OUT, YAML_OUT)
        assert (written != schema) == (".out(" in schema)
        # The library registers as "input" what the yaml calls "self", of functions that once were methods.
        assert listed & {written, written.replace(" input", " self", 1)}, qualified_name(schema)


@pytest.mark.contract
def test_no_overload_is_missing(wheel):
    word = "fused_infer_attention_score"
    listed = {qualified_name(f) for f in functions(wheel(YAML)) if word in f}
    assert listed == {qualified_name(s) for s in SCHEMAS if word in s}


@pytest.mark.contract
def test_operators_of_other_packages_are_not_in_the_wheel(wheel):
    listed = {qualified_name(function) for function in functions(wheel(YAML))}
    library = wheel(LIBRARY)
    for schemas in SCHEMAS_OF_OTHER_PACKAGES.values():
        for schema in schemas:
            assert qualified_name(schema) not in listed
            assert library.find(f"\0{qualified_name(schema)}(".encode()) < 0


@pytest.mark.contract
def test_schemas_of_atb_are_in_its_library_in_pieces(wheel):
    """The compiler copies these strings with 16 byte constants, so the library has every whole piece somewhere."""
    library = wheel(ATB_LIBRARY)
    missing = []
    for schema in SCHEMAS:
        if namespace(schema) == "atb":
            text = unqualified(schema).encode()
            pieces = [text[start : start + 16] for start in range(0, len(text) - 15, 16)]
            missing += [piece for piece in pieces if library.find(piece) < 0]
    assert missing == []
