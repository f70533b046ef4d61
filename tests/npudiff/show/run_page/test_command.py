"""``npudiff report``: what it takes, where it writes, and how it ends."""

from __future__ import annotations

import pytest


def test_nothing_to_tell_of_is_told(cli, tmp_path):
    (tmp_path / ".npudiff").mkdir()
    result = cli("report")
    assert result.code == 5
    assert result.err == "npudiff: no run left a record in .npudiff; npudiff check writes one\n"
    assert not list((tmp_path / ".npudiff").iterdir())


@pytest.mark.parametrize("path", [".npudiff", "no/such.json"])
def test_a_path_that_is_not_there_is_a_mistake(cli, path):
    result = cli("report", path)
    assert result.code == 4
    assert result.err == f"npudiff: {path}: no such file or folder\n"


def test_only_damaged_records_are_no_report(cli, put):
    path = put("{")
    result = cli("report", path)
    assert result.code == 5
    assert str(path) in result.err


def test_records_of_several_folders_are_one_page(cli, put, record, job, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    put(record(), root=one)
    put(record(cann="9.0", jobs=(job(implementation="other"),)), root=two)
    result = cli("report", one, two / "runs" / "20260102T030405Z-sim-8.5.json")
    assert (result.code, result.out) == (0, f"{one}/report.html\n")
    page = (one / "report.html").read_text(encoding="utf-8")
    assert "CANN 9.0" in page
    assert "other" in page


@pytest.mark.parametrize("path", ["out", "out/runs", "out/runs/20260102T030405Z-sim-8.5.json"])
def test_a_page_stands_beside_the_findings(cli, put, record, tmp_path, path):
    put(record())
    assert cli("report", path).out == "out/report.html\n"
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_record_that_is_named_twice_counts_once(cli, put, record, tmp_path):
    path = put(record())
    cli("report", tmp_path / "out", path, "out")
    assert "in 10 cases" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count("2026-01-02 03:04:05") == 1


def test_the_page_goes_where_it_is_asked_to(cli, put, record, tmp_path):
    put(record())
    assert cli("report", "out", "--output", "there/page.html").out == "there/page.html\n"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["page.html"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["runs"]


def test_a_page_that_cannot_be_written_is_a_mistake(cli, put, record, tmp_path):
    put(record())
    (tmp_path / "file").write_text("x")
    result = cli("report", "out", "--output", "file/page.html")
    assert result.code == 4
    assert result.err.count("\n") == 1


def test_findings_without_a_run_are_listed(cli, tmp_path, make_finding, keep_finding):
    said = keep_finding(tmp_path / "out", make_finding(1))
    assert cli("report", "out").code == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"out/findings/{said.folder}" in page
    assert "1 finding folder that no run here names, such as those of pytest" in page


def test_a_report_of_findings_ends_with_0(cli, tmp_path):
    common = ("--target", "sim", "--examples", "10", "--seed", "1")
    assert cli("check", "swa_mask", "--impl", "mask_without_tail", *common).code == 1
    assert cli("report").code == 0


def test_the_latest_run_counts_whatever_the_order_of_folders(cli, put, record, job, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    put(record(started="2026-02-01T00:00:00Z"), root=one)
    put(record(started="2026-01-01T00:00:00Z", jobs=(job(verdict="wrong value"),)), root=two)
    for paths in ((one, two), (two, one)):
        cli("report", *paths, "--output", "page.html")
        assert "Every property held" in (tmp_path / "page.html").read_text(encoding="utf-8")
