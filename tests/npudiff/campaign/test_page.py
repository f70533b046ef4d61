from __future__ import annotations

import pytest

from npudiff.campaign.causes import Causes
from npudiff.campaign.known import CauseKnowledge, JobKnowledge, Knowledge
from npudiff.campaign.loop import Campaign
from npudiff.campaign.page import page_of
from npudiff.campaign.progress import line_of
from npudiff.findings.finding import Finding
from npudiff.findings.log import LoggedFinding
from npudiff.run.plan import Plan, Request


def finding(case, verdict="wrong value", implementation="mine", **detail):
    fields = ("toy", implementation, "here", "0", "equivalence", verdict)
    return Finding(*fields, case, {"line": str(case), **detail}, {})


@pytest.fixture
def campaign(toy, tmp_path):
    """A campaign that has learned something, some of it written by somebody hostile."""
    job = toy.job()
    knowledge = Knowledge("here 0", "name")
    plan = Plan(job.subject.target, (job,), (), Request(isolate=False))
    running = Campaign(plan, knowledge, Causes(tmp_path, knowledge), None)
    knowledge.jobs[job.name] = JobKnowledge(
        done=3, cases=600, seconds=12.0, worst=0.25, worst_case='{"numbers":[1,2],"kind":"odd"}', exact=False
    )
    found = finding({"numbers": [3], "kind": "<b>odd</b>"})
    running.causes.findings[found.key] = LoggedFinding(found, tmp_path / found.key, "")
    knowledge.causes[found.key] = CauseKnowledge(found.key, job.name, 1.0, {}, times=4, others={"toy.other.repeats"})
    knowledge.lost.append(("7", "<script>alert(1)</script>"))
    return running


def test_the_page_shows_findings_margins_jobs_and_what_was_lost(campaign):
    page = page_of(campaign, "2 workers", live=True)
    assert '<meta http-equiv="refresh" content="10">' in page
    assert "1 finding, one of each cause. The campaign runs." in page
    assert "4 times, also by toy.other.repeats" in page
    assert '0.25<span class="narrow"> of the bound</span>' in page
    assert "1 2" in page  # the case of the margin, in words
    assert "Card 7 is lost" in page
    assert "<script>" not in page
    assert "<b>odd" not in page
    (name,) = campaign.causes.findings
    assert f'href="findings/{name}/finding.html"' in page
    assert "refresh" not in page_of(campaign, "2 workers", live=False)


def test_the_line_has_what_changes(campaign):
    campaign.cases = 10
    line = line_of(campaign)
    assert line.startswith("10 cases (")
    assert line.endswith(" per second) · 0 pairs of regions · largest error/bound 0.25 · 1 finding")


def test_findings_are_one_where_they_have_one_cause(campaign):
    causes, knowledge = campaign.causes, campaign.knowledge
    (name,) = causes.findings
    known = causes.findings[name].finding
    assert causes.cause_of(known) == name
    assert causes.cause_of(finding({"numbers": [5], "kind": "plain"})) == name  # nobody knows where it fails
    knowledge.causes[name].region = {"kind": ["odd"]}
    assert causes.cause_of(finding({"numbers": [5], "kind": "odd"})) == name
    assert causes.cause_of(finding({"numbers": [5], "kind": "plain"})) is None
    assert causes.cause_of(finding({"numbers": [5], "kind": "odd"}, "exception", error="boom")) is None
    assert causes.cause_of(finding({"numbers": [5], "kind": "odd"}, implementation="other")) is None
