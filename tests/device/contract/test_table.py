"""The contract of torch_npu, put together: answers of recorded, installed and given versions."""

from __future__ import annotations

import pytest

from npudiff.device.contract import contract, table
from npudiff.device.contract.calls import Call, recorded_calls
from npudiff.device.contract.listing import LISTING, Listing
from npudiff.device.contract.versions import BASE, BASE_SCHEMAS, recorded_wheels
from npudiff.errors import UsageError
from npudiff.model.contract import Answer, Standing


@pytest.fixture(autouse=True)
def not_installed(monkeypatch):
    monkeypatch.setattr(table, "installed_folder", lambda: None)


@pytest.fixture
def package(tmp_path):
    """An unpacked torch_npu; returns a function of what its listing has otherwise than the base."""

    def write(version, **changes):
        schemas = {**BASE_SCHEMAS, **changes}
        (tmp_path / LISTING).parent.mkdir(parents=True)
        (tmp_path / LISTING).write_text("".join(f"- func: {schema}\n" for schema in schemas.values() if schema))
        (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
        return tmp_path

    return write


def test_the_base_accepts_every_call_and_is_judged_where_there_is_nothing_else():
    found = contract([])
    assert [release.name for release in found.releases if release.judged] == [BASE] == [found.base]
    assert found.findings == 0
    assert found.forms == len(recorded_calls())


def test_what_no_listing_has_is_unknown_and_never_accepted():
    for release in contract([]).releases:
        unknown = {name for name, one in release.answers.items() if one.standing is Standing.UNKNOWN}
        assert unknown == {
            "apply_token_bitmask", "atb::_npu_paged_attention_mla", "atb::_npu_reshape_and_cache", "mla_preprocess",
            "causal_conv1d", "chunk_gated_delta_rule", "recurrent_gated_delta_rule", "sgl_sparse_flash_attention",
            "build_tree_kernel_efficient", "cache_loc_update", "atb::_npu_flash_attention_unpad",
        }  # fmt: skip


def test_every_recorded_version_but_the_first_accepts_every_call():
    """What the wheels say; a new adapter or a new version may change it, and then docs/contract.md with it."""
    not_accepted = {
        release.name: {name: one.standing.value for name, one in release.answers.items()
                       if one.standing not in (Standing.ACCEPTED, Standing.UNKNOWN)}
        for release in contract([]).releases
    }  # fmt: skip
    assert {name: rows for name, rows in not_accepted.items() if rows} == {
        "2.9.0": {
            "npu_add_rms_norm_v2": "missing",
            "npu_chunk_gated_delta_rule": "missing",
            "npu_gather_pa_kv_cache": "missing",
            "npu_scatter_pa_kv_cache": "no",
        },
        **{
            version: {"npu_chunk_gated_delta_rule": "missing"}
            for version in ("2.9.0.post2", "2.9.0.post4", "2.9.1", "2.10.0", "2.10.0.post2")
        },
    }


def test_a_given_version_is_read_and_judged(package):
    found = contract([package("3.0.0", npu_swiglu="npu_swiglu(Tensor x, int dim) -> Tensor", npu_rms_norm=None)])
    last = found.releases[-1]
    assert (last.name, last.judged) == ("3.0.0 (given)", True)
    assert [release.judged for release in found.releases[:-1]] == [False] * len(recorded_wheels())
    assert last.answers["npu_swiglu"] == Answer(Standing.REFUSED, "argument 'dim' has no default and is left out")
    assert last.answers["npu_rms_norm"].standing is Standing.MISSING
    assert found.findings == 2


def test_an_installed_package_is_always_read(package, monkeypatch):
    folder = package(BASE)
    monkeypatch.setattr(table, "installed_folder", lambda: folder)
    found = contract([])
    assert [release.name for release in found.releases if release.judged] == [f"{BASE} (installed)"]
    assert found.findings == 0


def test_what_cannot_be_read_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"--contract: .*gone\.whl: no such file or folder"):
        contract([tmp_path / "gone.whl"])


def test_an_operator_gets_the_worst_answer_of_its_calls():
    calls = [Call.parse(text) for text in ("npu_swiglu(Tensor)", "npu_swiglu(Tensor, dim=str)", "npu_swiglu(Tensor)")]
    (only,) = table.answers(calls, Listing(BASE, "", BASE_SCHEMAS)).values()
    assert only == Answer(Standing.REFUSED, "argument 'dim' is int, and str is passed")
