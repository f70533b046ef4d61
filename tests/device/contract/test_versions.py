"""The recorded versions: the base is what the simulator has, and what was read is what is recorded."""

from __future__ import annotations

import json
import re

import pytest

from npudiff.device.contract.listing import Listing
from npudiff.device.contract.versions import (
    BASE,
    BASE_SCHEMAS,
    RECORDED_VERSIONS,
    Wheel,
    of_simulated,
    recorded_wheels,
    version_key,
    write_wheels,
)

OVERLOADS_NOT_SIMULATED = {
    f"npu_{name}.out"
    for name in ("broadcast", "fusion_attention_grad_v3", "fusion_attention_v3", "indexing", "reshape", "slice",
                 "sort_v2", "transpose")
}  # fmt: skip
"""Forms with outputs of simulated operators, which nobody has asked for."""

NAMES = ("npu_swiglu", "npu_rms_norm")


def wheel(version, **schemas):
    return Wheel(f"{version}.whl", f"digest of {version}", Listing(version, f"{version}.whl", schemas))


def test_versions_are_ordered_as_they_were_released_in_each_series():
    versions = ["2.9.0", "2.9.0.post2", "2.9.0.post9", "2.9.1", "2.10.0", "2.10.0.post7", "2.14.0"]
    assert sorted(set(versions), key=version_key) == versions


def test_the_base_is_recorded_with_the_schemas_of_the_simulator():
    (base,) = [one.listing for one in recorded_wheels() if one.listing.version == BASE]
    more = base.schemas.keys() - BASE_SCHEMAS.keys()
    assert {name: base.schemas[name] for name in base.schemas.keys() - more} == BASE_SCHEMAS
    assert more == OVERLOADS_NOT_SIMULATED


def test_every_series_from_2_9_to_2_14_is_recorded_with_its_wheel():
    wheels = recorded_wheels()
    assert {version_key(one.listing.version)[:2] for one in wheels} == {(2, minor) for minor in range(9, 15)}
    for one in wheels:
        assert one.file.startswith(f"torch_npu-{one.listing.version}-")
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)
    assert len({one.sha256 for one in wheels}) == len(wheels)


def test_what_is_recorded_is_what_was_read(tmp_path):
    path = tmp_path / "versions.json"
    wheels = [
        wheel("2.9.0", npu_swiglu="npu_swiglu(Tensor x) -> Tensor"),
        wheel("2.9.1", npu_swiglu="npu_swiglu(Tensor x, int d) -> Tensor", npu_rms_norm="npu_rms_norm() -> Tensor"),
        wheel("2.10.0", npu_swiglu="npu_swiglu(Tensor x) -> Tensor", npu_rms_norm="npu_rms_norm() -> Tensor"),
    ]
    write_wheels(reversed(wheels), path)
    assert recorded_wheels(path) == wheels
    content = json.loads(path.read_text())["schemas"]
    assert content["npu_swiglu"] == [
        {"schema": "npu_swiglu(Tensor x) -> Tensor", "versions": "others"},
        {"schema": "npu_swiglu(Tensor x, int d) -> Tensor", "versions": "2.9.1"},
    ]
    assert content["npu_rms_norm"][1] == {"schema": None, "versions": "2.9.0"}


def test_the_recorded_file_is_what_would_be_written(tmp_path):
    write_wheels(recorded_wheels(), tmp_path / "versions.json")
    assert (tmp_path / "versions.json").read_text() == RECORDED_VERSIONS.read_text()


def test_only_simulated_operators_are_kept_with_overloads_that_are_not_simulated():
    schemas = {"npu_swiglu.new": "npu_swiglu.new() -> Tensor", "npu_other": "npu_other() -> Tensor"}
    assert list(of_simulated(Listing("1", "f", schemas)).schemas) == ["npu_swiglu.new"]


@pytest.mark.parametrize("name", sorted(BASE_SCHEMAS))
def test_every_simulated_operator_is_recorded(name):
    assert any(name in one.listing.schemas for one in recorded_wheels())
