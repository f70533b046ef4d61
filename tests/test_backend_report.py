"""What is wrong in shipping backends: what is written from it is current, and a gate can read it."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from benchmarks import backend_changes, backend_report
from npudiff.gate.known import MOST_DAYS, read_known
from npudiff.model.case import loads
from npudiff.model.constraints import parse_where
from npudiff.run.discovery import load_component

REPORTS = backend_report.reports()


def test_the_page_and_the_known_issues_are_what_the_files_say():
    assert backend_report.PAGE.read_text(encoding="utf-8") == backend_report.page(REPORTS)
    for report in REPORTS:
        path = backend_report.FOLDER / f"known_issues_{report.name}.toml"
        assert path.read_text(encoding="utf-8") == backend_report.known_issues(report)


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_known_issues_are_read_by_the_gate(report):
    path = backend_report.FOLDER / f"known_issues_{report.name}.toml"
    expires = date.fromisoformat(str(report.expires))
    issues = read_known(path, expires - timedelta(days=MOST_DAYS))
    assert len(issues) == sum(len(defect.seen) for defect in report.defects)


@pytest.mark.parametrize(
    ("report", "defect"), [(one, defect) for one in REPORTS for defect in one.defects], ids=lambda one: one.name
)
def test_a_defect_is_told_whole_and_its_cases_are_cases(report, defect):
    assert all((defect.title, defect.why, defect.fix, defect.versions, ": " in defect.source)), defect.name
    component = load_component(defect.component)
    fields = set(component.case_type.__dataclass_fields__)
    for seen in defect.seen:
        plain = backend_report.json.loads(seen.case)
        own = backend_report.json.dumps({name: value for name, value in plain.items() if name in fields})
        component.check_case(loads(component.case_type, own))
        for text in seen.where:  # of an axis, or an option of the implementation
            axis = text.partition("=")[0]
            assert axis in component.axes or axis in set(plain) - fields, axis
            if axis in component.axes:
                parse_where([text]).checked(component.axes, defect.name)


@pytest.mark.parametrize("report", REPORTS, ids=lambda one: one.name)
def test_names_of_defects_are_their_own(report):
    names = [defect.name for defect in report.defects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("change", ["unknown = 1", 'contradicts = ["taste"]', "seen = []"])
def test_a_file_that_says_something_else_is_refused(tmp_path, change):
    text = (
        'title = "x"\nlink = "https://example.org"\nexpires = 2027-01-01\n[[defect]]\nname = "n"\ntitle = "t"\n'
        'component = "swa_mask"\nsource = "a.py: f"\nwhy = "w"\nfix = "f"\nversions = ["1"]\n'
    )
    text += change + "\n" + ("" if change.startswith("contradicts") else 'contradicts = ["itself"]\n')
    text += "" if change.startswith("seen") else '[[defect.seen]]\nimplementation = "f"\ncase = "{}"\nline = "l"\n'
    path = tmp_path / "one.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"one\.toml"):
        backend_report.read_report(path)


def test_changes_of_backends_name_components_that_there_are():
    for name in ("sglang", "vllm_ascend"):
        for change in backend_changes.changes_of(name):
            assert change.old != change.new
            for component in change.tests:
                load_component(component)
