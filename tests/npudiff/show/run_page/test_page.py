"""The page: what it says, that it is in order, and that it stays small."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace

import pytest

from npudiff.show.run_page import findings
from npudiff.show.run_page.findings import IN_FULL, WITH_PICTURES
from npudiff.show.run_page.margins import length
from npudiff.show.run_page.page import run_page
from npudiff.show.run_page.read import StoredRun, read_records
from npudiff.show.run_page.record import Count, KnownRecord


@pytest.fixture
def page_of(tmp_path, check_page):
    """The page of records in one folder, checked."""
    root = tmp_path / "out"
    root.mkdir()

    def make(*records, problems=(), strays=()):
        text = run_page([StoredRun(one, root) for one in records], problems, strays, root / "report.html")
        return text, check_page(text, root)

    return make


@pytest.fixture
def failing(tmp_path, record, job, make_finding, keep_finding):
    """The record of a run with findings that are described, and are in their folders."""

    def make(*changes, keep=True):
        findings, jobs = [], []
        for number, change in enumerate(changes):
            said = keep_finding(tmp_path / "out", make_finding(number, **change), number)
            findings.append(said)
            names = (said.component, said.implementation, said.property_name)
            jobs.append(job(**dict(zip(("component", "implementation", "property_name"), names, strict=True)),
                            verdict="wrong value", findings=(said.folder,)))  # fmt: skip
        return record(jobs=tuple(jobs), findings=tuple(findings))

    return make


def test_a_clean_run(page_of, record):
    text, page = page_of(record())
    assert "Every property held, in 10 cases." in page.words
    assert "No findings." in page.words
    assert "Nothing here ran on an NPU" in page.words
    assert "sim, CANN 8.5" in page.words
    assert "0 findings" in page.words
    assert page.links == [f"#{name}" for name in ("findings", "findings", "matrix", "margins", "mutants", "regions")]
    assert len(text) < 20_000


def test_it_is_not_said_of_a_run_on_an_npu(page_of, record):
    assert "Nothing here ran" not in page_of(record(target="npu", device="npu:0"))[1].words


def test_a_page_of_no_run_is_in_order(page_of):
    assert "Nothing ran: nothing is known." in page_of(strays=["out/findings/x"])[1].words


def test_a_finding_is_told_drawn_and_linked(page_of, failing):
    _, page = page_of(failing({}))
    assert "1 finding in 1 of 1 implementation." in page.words
    assert "case 0" in page.words
    assert "only at place 0" in page.words
    assert re.search(r"npudiff replay \S+/findings/toy-mine-equivalence-[0-9a-f]{10}", page.words)
    assert "elements beyond their bound" in page.words
    assert [link for link in page.links if link.endswith("finding.html")]
    assert "#impl-1" in page.links  # from the matrix


def test_findings_with_one_symptom_stand_together(page_of, failing):
    same = {"line": "x", "error": "RuntimeError: 507015"}
    _, page = page_of(failing(*({"property_name": f"p{n}", "detail": same} for n in range(38))))
    assert [tag for tag, _ in page.tags].count("article") == 1
    assert "and 37 others with the same symptom" in page.words
    assert len([link for link in page.links if link.endswith("finding.html")]) == 38


def test_relations_are_folded_where_values_are_wrong(page_of, failing):
    _, page = page_of(failing({"property_name": "relation"}, {}))
    assert [tag for tag, _ in page.tags].count("article") == 1
    assert "1 finding of relations" in page.words
    _, page = page_of(failing({"property_name": "relation"}))
    assert [tag for tag, _ in page.tags].count("article") == 1


def test_a_finding_that_is_gone_is_said_to_be(page_of, failing, tmp_path):
    content = failing({}, {"implementation": "other"})
    folders = sorted((tmp_path / "out" / "findings").iterdir())
    for path in folders[0].iterdir():
        path.unlink()
    folders[0].rmdir()
    (folders[1] / "tensors.safetensors").write_bytes(b"changed")
    _, page = page_of(content)
    assert f"Its folder is gone: {folders[0].name}" in page.words
    assert "does not match its checksum: damaged or changed" in page.words


def test_a_page_that_is_no_plain_file_is_not_linked(page_of, failing, tmp_path):
    content = failing({})
    (path,) = (tmp_path / "out" / "findings").glob("*/finding.html")
    path.unlink()
    path.symlink_to("/etc/hostname")
    _, page = page_of(content)
    assert "no page" in page.words
    assert not [link for link in page.links if link.endswith("finding.html")]


def test_pictures_and_words_have_an_end_and_every_implementation_its_share(page_of, failing, monkeypatch):
    monkeypatch.setattr(findings, "IN_FULL", 7)
    monkeypatch.setattr(findings, "WITH_PICTURES", 3)
    changes = [{"implementation": f"i{n % 5}", "property_name": f"p{n}"} for n in range(50)]
    _, page = page_of(failing(*changes))
    assert [tag for tag, _ in page.tags].count("article") == 7
    assert [tag for tag, _ in page.tags].count("svg") == 3
    assert page.words.count("8 more findings") == 2
    assert page.words.count("9 more findings") == 3
    assert len([link for link in page.links if link.endswith("finding.html")]) == 50


def test_a_picture_of_many_cells_is_made_coarser(page_of, failing, tmp_path):
    content = failing({})
    (path,) = (tmp_path / "out" / "findings").glob("*/picture.json")
    plain = json.loads(path.read_text())
    plain["pictures"][0] |= {"levels": ["04" * 48, "40" * 48] * 48, "elements": [96, 96], "borders": {}}
    path.write_text(json.dumps(plain))
    text, page = page_of(content)
    assert [tag for tag, _ in page.tags].count("rect") < 100
    assert len(text) < 30_000


def test_an_interrupted_run_says_so(page_of, record, job):
    missing = job(implementation="late", verdict="not run", cases=0, held=0)
    _, page = page_of(record(ended="interrupted", problem="KeyboardInterrupt: ", jobs=(job(), missing)))
    assert "The run of 2026-01-02T03:04:05Z did not come to its end (interrupted: KeyboardInterrupt: )" in page.words
    assert "Every property held, in 10 cases; some were not run." in page.words
    assert "not run" in page.words


def test_missed_mutants_are_told_first(page_of, record, mutant):
    _, page = page_of(record(mutants=(mutant(), mutant(implementation="lost", found=False, cases=100))))
    assert "No findings, but 1 mutant that had to be found was missed." in page.words
    assert "missed in 100 cases" in page.words
    assert "found at case 3" in page.words
    assert "1 of 2 were found" in page.words
    _, page = page_of(record(mutants=(mutant(found=False),), judged=False))
    assert "Every property held" in page.words
    assert "1 mutant not shown: the run was narrowed or shortened" in page.words


def test_known_issues_are_told_and_what_they_leave_out(page_of, record, job):
    seen = KnownRecord("toy.mine where a=<1>", "still fails", False, "https://example.org/<7>", "2027-01-31")
    due = replace(seen, name="toy.late", state="has expired", closes=True)
    jobs = (job(without=(seen.name,)), job(implementation="all", verdict="not run", cases=0, without=("toy.all",)))
    _, page = page_of(record(command="gate", gate="open", jobs=jobs, known=(seen,)))
    assert "Every property held, in 10 cases, without those of 2 known issues." in page.words
    assert "gate open" in page.words
    assert "10 cases, without 1 known issue" in page.words
    assert "nothing else was run" in page.words
    assert "toy.mine where a=<1>" in page.words
    assert "https://example.org/<7>" in page.words
    assert "#known" in page.links
    _, page = page_of(record(command="gate", gate="closed: 1 known issue to look at", known=(seen, due)))
    assert "No findings, but 1 known issue has to be looked at." in page.words
    assert page.words.index("toy.late") < page.words.index("toy.mine where")


def test_margins_are_told_with_the_case(page_of, record, job):
    jobs = (
        job(),
        job(property_name="b", worst=0.75, worst_case="the worst one"),
        job(implementation="equal", exact=True),
    )
    text, page = page_of(record(jobs=jobs))
    assert "0.75" in page.words
    assert "the worst one" in page.words
    assert "1 2 3" not in page.words
    assert "1 implementation of which only equality was asked" in page.words
    assert 'style="width:95.8%"' in text


@pytest.mark.parametrize(
    ("worst", "percent"), [(0, 0), (1e-9, 0), (0.001, 0), (0.01, 33.3), (0.1, 66.7), (1, 100), (9, 100)]
)
def test_bars_are_logarithmic(worst, percent):
    assert length(worst) == pytest.approx(percent, abs=0.05)


def test_regions_and_reasons_are_there(page_of, record, job):
    counts = {"features": (Count("ragged", 5),), "reasons": (Count("too large", 4),), "not_applicable": 7}
    _, page = page_of(record(jobs=(job(**counts),)))
    assert "ragged 50%" in page.words
    assert "7 draws: 4 times too large" in page.words


def test_runs_that_were_made_with_other_versions_say_so(page_of, record):
    from npudiff.show.run_page.record import EnvironmentEntry

    later = record(started="2026-01-03T00:00:00Z", environment=(EnvironmentEntry("torch", "3.0"),))
    _, page = page_of(record(), later)
    assert page.words.count("torch 3.0") == 1
    assert page.words.count("torch 2.9") == 1


def test_names_of_all_kinds_become_addresses(tmp_path, record, job, make_finding, keep_finding, parsed):
    root = tmp_path / "a b" / "https:" / "é#?%"
    said = keep_finding(root, make_finding(1))
    content = record(jobs=(job(verdict="wrong value", findings=(said.folder,)),), findings=(said,))
    page = parsed(run_page([StoredRun(content, root)], [], [], tmp_path / "elsewhere" / "r.html"))
    (link,) = (link for link in page.links if link.endswith("finding.html"))
    assert link == f"../a%20b/https%3A/%C3%A9%23%3F%25/findings/{said.folder}/finding.html"


@pytest.mark.slow
def test_numbers_of_many_findings(page_of, many, tmp_path):
    content = many(tmp_path / "out", 300, implementations=3, symptoms=2)
    _, page = page_of(content)
    assert "300 findings in 3 of 4 implementations." in page.words
    assert "300 findings of 3 implementations" in page.words
    assert [tag for tag, _ in page.tags].count("article") == 6


@pytest.mark.slow
def test_five_thousand_findings_are_one_page_in_a_few_seconds(many, put, tmp_path, cli, check_page):
    root = tmp_path / "out"
    put(many(root, 5_000))
    started = time.perf_counter()
    assert cli("report", root).code == 0
    assert time.perf_counter() - started < 5
    text = (root / "report.html").read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    page = check_page(text, root)
    assert len([link for link in page.links if link.endswith("finding.html")]) == 5_000
    assert [tag for tag, _ in page.tags].count("article") == min(IN_FULL, 60)
    assert [tag for tag, _ in page.tags].count("svg") == WITH_PICTURES
    assert len(page.tags) < 100_000


def test_real_runs_become_a_page(cli, tmp_path, check_page):
    for cann in ("8.5", "9.0"):
        cli("check", "rms_norm", "--impl", "residual_dropped", "--impl", "native_rms_norm", "--target", "sim",
            "--cann", cann, "--examples", "10", "--seed", "1")  # fmt: skip
    result = cli("report")
    assert result.out == ".npudiff/report.html\n"
    assert result.err == ""
    assert result.code == 0
    text = (tmp_path / ".npudiff" / "report.html").read_text(encoding="utf-8")
    page = check_page(text, tmp_path / ".npudiff")
    assert "in 1 of 2 implementations." in page.words
    assert re.search(r"worst *output: error is \d+", page.words)
    assert "<svg" in text
    kept, problems = read_records([tmp_path / ".npudiff"])
    assert (len(kept), problems) == (2, [])
    assert replace(kept[0].record, started="", seconds=0) != replace(kept[1].record, started="", seconds=0)
