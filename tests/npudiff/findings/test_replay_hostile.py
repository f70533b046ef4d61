"""Findings from strangers: each is an answer in one line; nothing is executed, followed or written."""

from __future__ import annotations

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from npudiff import TargetUnavailable
from npudiff.errors import ExitCode
from npudiff.findings.finding import FINDING_FILE, SCHEMA_VERSION, TENSOR_FILE
from npudiff.findings.replay import ReplayVerdict, replay
from npudiff.run.discovery import load_component

VERDICTS = set(ReplayVerdict)
MASK_CASE = {"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": False}
ATTENTION_CASE = {"requests": [{"query": 1, "kv": 2}], "window": 1}


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_one_error_line(result, folder):
    assert result.code == ExitCode.USAGE
    assert result.out.startswith("ERROR  ")
    assert result.out.count("\n") == 1
    assert str(folder) in result.out
    assert result.out[:-1].isprintable()
    assert len(result.out) < 2000
    assert result.err == ""


def _no_device(cann):
    raise TargetUnavailable("torch_npu sees no NPU")


@pytest.mark.few(5)
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"component": "../../x"}, "unknown component '../../x'"),
        ({"component": "os"}, "unknown component 'os'"),
        ({"component": "x" * 100_000}, "unknown component"),
        ({"implementation": "../../../etc/passwd"}, "unknown implementation '../../../etc/passwd'"),
        ({"implementation": "evil.py"}, "unknown implementation 'evil.py'"),
        ({"implementation": "\x1b[2J\x1b]0;owned\x07"}, "unknown implementation"),
        ({"implementation": "fia_decode_mask"}, "unknown implementation 'fia_decode_mask'"),
        ({"implementation": "\ud800"}, "unknown implementation"),
        ({"property_name": "__class__"}, "unknown property '__class__'"),
        ({"property_name": "chunks_equal_one_shot"}, "unknown property 'chunks_equal_one_shot'"),
        ({"target": "http://x"}, "unknown target 'http://x'"),
        ({"target": "npu"}, "torch_npu"),
        ({"cann": "../8.5"}, "unknown CANN profile '../8.5'"),
        ({"schema_version": 99}, "newer npudiff (schema 99"),
        ({"schema_version": SCHEMA_VERSION + 1}, f"newer npudiff (schema {SCHEMA_VERSION + 1}"),
        ({"schema_version": 0}, "no schema_version"),
        ({"schema_version": True}, "no schema_version"),
        ({"schema_version": 1.0}, "no schema_version"),
        ({"schema_version": "1"}, "no schema_version"),
        ({"schema_version": -1}, "no schema_version"),
        ({"case": {}}, "the case is damaged: case: missing 'kv_lengths'"),
        ({"case": {**MASK_CASE, "kv_lengths": []}}, "the case is damaged: batch must lie in 1..4096, got 0"),
        ({"case": {**MASK_CASE, "kv_lengths": [10**12]}}, "the case is damaged: kv_length must lie in 0..16777216"),
        ({"case": {**MASK_CASE, "kv_lengths": [2**24] * 5}}, "the case is damaged: the mask would have more than"),
        ({"case": {**MASK_CASE, "spare": 10**15}}, "the case is damaged: spare"),
        ({"case": {**MASK_CASE, "window": 10**4000}}, "the case is damaged: window"),
        ({"case": {**MASK_CASE, "window": True}}, "the case is damaged: case.window"),
        ({"case": {**MASK_CASE, "window": float("nan")}}, "the case is damaged: case.window"),
        ({"case": {**MASK_CASE, "x\x1b[31m" * 1000: 1}}, "the case is damaged: case: unknown"),
        ({"tensors_sha256": "0" * 64}, "does not match its checksum"),
    ],
)
def test_a_hostile_field_is_one_line_that_names_the_folder(cli, hostile, tmp_path, monkeypatch, changes, expected):
    monkeypatch.setattr("npudiff.device.targets.npu", _no_device)
    (tmp_path / "evil.py").write_text("raise SystemExit('executed')")
    folder = hostile(**changes)
    before = tree(tmp_path)
    result = cli("replay", folder)
    assert_one_error_line(result, folder)
    assert expected in result.out
    assert tree(tmp_path) == before


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "changes",
    [
        {"requests": [{"query": 1, "kv": 10**12}]},
        {"requests": [{"query": 10**12, "kv": 1}]},
        {"requests": [{"query": 1, "kv": -1}]},
        {"requests": [{"query": 2**20, "kv": 2**20}]},
        {"requests": []},
        {"page_size": 10**9},
        {"page_size": 0},
        {"page_size": 65_536, "kv_heads": 65_536},
        {"kv_heads": 65_536, "group": 65_536},
        {"group": 10**9},
        {"head_dim": 10**6},
        {"padded_rows": 10**9},
        {"spare_pages": 10**9},
        {"window": 0},
        {"window": 10**30},
        {"scale": float("inf")},
        {"scale": float("nan")},
        {"scale": 10**400},
        {"seed": -1},
        {"seed": 2**64},
        {"dtype": "float8"},
        {"recipe": "__import__('os')"},
    ],
)
def test_a_case_of_hostile_sizes_is_refused_before_anything_is_built(cli, hostile, monkeypatch, changes):
    monkeypatch.setattr(
        "npudiff.findings.replay.load_component", lambda name: dataclasses.replace(load_component(name), inputs=_never)
    )
    case = {**ATTENTION_CASE, **changes}
    folder = hostile(component="sliding_attention", implementation="torch_native", case=case)
    result = cli("replay", folder)
    assert_one_error_line(result, folder)
    assert "the case is damaged: " in result.out


def _never(case):
    raise AssertionError("a hostile case was built")


@pytest.mark.slow
def test_a_million_requests_are_refused(cli, hostile):
    requests = [{"query": 1, "kv": 1}] * 30_000
    folder = hostile(component="sliding_attention", implementation="torch_native", case={"requests": requests})
    result = cli("replay", folder)
    assert_one_error_line(result, folder)
    folder = hostile(case={"requests": requests * 40})
    result = cli("replay", folder)
    assert_one_error_line(result, folder)
    assert "bytes, at most" in result.out


@pytest.mark.slow
def test_a_relation_on_a_case_that_no_strategy_would_draw_is_an_answer(cli, hostile):
    for name in (
        "company_does_not_matter", "batch_order_does_not_matter", "prefix_hit_equals_cold", "padding_does_not_matter",
        "decode_equals_last_row", "chunks_equal_one_shot", "poison_changes_no_bit", "page_names_do_not_matter",
        "wide_window_equals_none", "repeats_are_identical", "equivalence",
    ):  # fmt: skip
        for lengths in ((0, 0), (0, 5), (9, 2)):
            requests = [{"query": lengths[0], "kv": lengths[1]}] * 2
            case = {"requests": requests, "window": 3}
            folder = hostile(
                component="sliding_attention", implementation="torch_native", property_name=name, case=case
            )
            assert cli("replay", folder).code in (ExitCode.CLEAN, ExitCode.FINDINGS, ExitCode.USAGE), (name, lengths)


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"schema_version": ' + b"9" * 5000 + b"}",
        b'{"schema_version": 1}',
        b"{" + b" " * 2**21 + b"}",
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_folder(cli, hostile, text):
    folder = hostile()
    (folder / FINDING_FILE).write_bytes(text)
    assert_one_error_line(cli("replay", folder), folder)


def test_links_are_not_followed(cli, hostile, tmp_path):
    folder = hostile()
    for name in (FINDING_FILE, TENSOR_FILE):
        elsewhere = tmp_path / name
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)
        result = cli("replay", folder)
        assert_one_error_line(result, folder)
        assert f"{name} is missing, or not a plain file" in result.out
        (folder / name).unlink()
        elsewhere.rename(folder / name)
    assert cli("replay", folder).code == ExitCode.FINDINGS


def test_a_folder_of_folders_does_not_lead_elsewhere(cli, hostile, tmp_path):
    folder = hostile()
    (tmp_path / "pulled").mkdir()
    (tmp_path / "pulled" / "link").symlink_to(folder, target_is_directory=True)
    assert cli("replay", tmp_path / "pulled").code == ExitCode.USAGE


def test_a_pipe_is_not_read(cli, hostile):
    folder = hostile()
    for name in (TENSOR_FILE, FINDING_FILE):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert_one_error_line(cli("replay", folder), folder)


def test_a_tensor_file_of_huge_size_is_not_read(cli, hostile):
    folder = hostile()
    with (folder / TENSOR_FILE).open("wb") as file:
        file.truncate(2**40)
    result = cli("replay", folder)
    assert_one_error_line(result, folder)
    assert "has 1099511627776 bytes, at most" in result.out


def test_a_missing_tensor_file_is_an_error(cli, hostile):
    folder = hostile()
    (folder / TENSOR_FILE).unlink()
    assert_one_error_line(cli("replay", folder), folder)


def test_the_content_of_tensors_is_never_parsed(cli, hostile):
    import hashlib

    folder = hostile(tensors_sha256=hashlib.sha256(b"\x80\x04cos\nsystem\n").hexdigest())
    (folder / TENSOR_FILE).write_bytes(b"\x80\x04cos\nsystem\n")
    assert cli("replay", folder).code == ExitCode.FINDINGS


@pytest.fixture
def hostile_once(hostile):
    folder = hostile()
    return SimpleNamespace(folder=folder, valid=(folder / FINDING_FILE).read_bytes())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_FUZZ = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
_FIELDS = ("schema_version", "component", "implementation", "target", "cann", "property_name", "case", "tensors_sha256")
_MASK_FIELDS = st.sampled_from(list(MASK_CASE))
_NUMBERS = st.integers(-2, 40) | st.sampled_from([2**24, 2**31, 2**63, 10**400, True, 1.5])
_CASES = st.dictionaries(_MASK_FIELDS, _JSON | _NUMBERS | st.lists(_NUMBERS, max_size=3), max_size=3)


def overwritten(once, data):
    (once.folder / FINDING_FILE).write_bytes(data)
    return replay(once.folder, [], None, None)


@pytest.mark.slow
@_FUZZ
@given(_JSON)
def test_an_arbitrary_document_is_an_answer(hostile_once, document):
    assert overwritten(hostile_once, json.dumps(document).encode()).verdict in VERDICTS


@pytest.mark.slow
@_FUZZ
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=2), _CASES)
@example({}, {"kv_lengths": [1], "window": 2**31})
def test_a_valid_document_with_arbitrary_fields_is_an_answer(hostile_once, fields, case):
    content = json.loads(hostile_once.valid)
    content["case"] = {**content["case"], **case}
    assert overwritten(hostile_once, json.dumps({**content, **fields}).encode()).verdict in VERDICTS


@pytest.mark.slow
@_FUZZ
@given(st.lists(st.tuples(st.integers(0, 2**12), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 2**12))
def test_a_valid_document_with_arbitrary_bytes_is_an_answer(hostile_once, changes, length):
    data = bytearray(hostile_once.valid)
    for index, byte in changes:
        data[index % len(data)] = byte
    result = overwritten(hostile_once, bytes(data[: length or None]) if length % 7 == 0 else bytes(data))
    assert result.verdict in VERDICTS
    assert result.line
