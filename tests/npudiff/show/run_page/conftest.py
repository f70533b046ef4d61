"""Records and findings made by hand, as many as are wanted, and the structure of a page."""

from __future__ import annotations

import html.parser
import json
from dataclasses import replace

import pytest
import torch

from npudiff.findings.finding import Finding, write_finding
from npudiff.model.case import to_plain
from npudiff.model.component import OutputComparison
from npudiff.model.job import Failure
from npudiff.show.picture import drawn, grid_of, write_pictures
from npudiff.show.run_page.record import EnvironmentEntry, FindingRecord, JobRecord, MutantRecord, RunRecord

JOB = JobRecord("toy", "mine", "equivalence", "holds", cases=10, held=10, worst=0.5, worst_case="1 2 3", exact=False)

RECORD = RunRecord(
    npudiff="0.1.0", command="check", started="2026-01-02T03:04:05Z", seconds=1.5, ended="complete", problem="",
    environment=(EnvironmentEntry("torch", "2.9"),), target="sim", device="cpu", cann="8.5", profile="dev", seed="1",
    examples="", budget="", scope=(), judged=True, jobs=(JOB,), findings=(), mutants=(),
)  # fmt: skip

MUTANT = MutantRecord("toy", "odd", "equivalence", "TOY-1 https://example.org", True, 3, 0.1, "7")


@pytest.fixture
def job():
    return lambda **changes: replace(JOB, **changes)


@pytest.fixture
def mutant():
    return lambda **changes: replace(MUTANT, **changes)


@pytest.fixture
def record():
    return lambda **changes: replace(RECORD, **changes)


@pytest.fixture
def put(tmp_path):
    """Write a record, or plain values, as a run of an output folder; returns the file."""

    def write(content, name="20260102T030405Z-sim-8.5.json", root=None):
        folder = (root or tmp_path / "out") / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(content, RunRecord):
            content = {"schema_version": 1, **to_plain(content)}
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    return write


def finding(number, **changes):
    case = {"numbers": [number]}
    detail = {"line": f"case {number}", "examples_to_finding": 3, "pattern": [f"only at place {number}"]}
    made = Finding("toy", "mine", "sim", "8.5", "equivalence", "wrong value", case, detail, {"torch": "2.9"})
    return replace(made, **changes)


def picture_of(number):
    ratio = torch.zeros(24, 32, dtype=torch.float64)
    ratio.view(-1)[number % ratio.numel() :: 5] = 7
    value = torch.zeros_like(ratio)
    return OutputComparison("y", ratio=ratio, actual=ratio, value=value, bound=torch.ones_like(ratio))


def put_finding(root, made, number=0, *, picture=True):
    """Write a finding as a run does, and return how a record names it."""
    output = picture_of(number)
    from npudiff.model.component import Comparison

    folder = write_finding(made, Failure(None, Comparison((output,)), None), root / "findings")
    grid = grid_of(output, {"request": torch.arange(24)[:, None] // 8})
    write_pictures(folder, [("as it was found", grid)] if picture else [])
    (folder / "finding.html").write_text(f"<!doctype html><title>x</title>{drawn(grid)}", encoding="utf-8")
    line = str(made.detail["line"])
    names = (made.component, made.implementation, made.property_name, made.verdict)
    return FindingRecord(folder.name, *names, line, str(made.detail.get("error", line)))


def many_findings(root, count, implementations=60, symptoms=None):
    """Write so many findings of so many implementations, and return the record of the run."""
    jobs, findings = {}, []
    for number in range(count):
        name = f"implementation_{number % implementations}"
        prop = f"relation_{number // implementations}" if number >= implementations else "equivalence"
        error = {} if symptoms is None else {"error": f"RuntimeError: {number % symptoms}"}
        made = finding(number, implementation=name, property_name=prop if symptoms is None else "equivalence")
        said = put_finding(root, replace(made, detail={**made.detail, **error}), number)
        findings.append(said)
        jobs.setdefault((name, said.property_name), []).append(said.folder)
    failed = tuple(
        replace(JOB, implementation=name, property_name=prop, verdict="wrong value", findings=tuple(folders))
        for (name, prop), folders in jobs.items()
    )
    return replace(RECORD, jobs=(JOB, *failed), findings=tuple(findings))


@pytest.fixture
def make_finding():
    return finding


@pytest.fixture
def keep_finding():
    return put_finding


@pytest.fixture
def many():
    return many_findings


class Page(html.parser.HTMLParser):
    """What a page is made of."""

    VOID = frozenset({"meta", "img", "br", "wbr", "hr", "input", "link"})
    LOOSE = frozenset({"tr", "td", "th", "li", "p", "dt", "dd", "thead", "tbody"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.headings, self.open, self.wrong = [], [], [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        self.wrong += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        made = dict(attributes)
        self.tags.append((tag, made))
        if "id" in made:
            self.ids.append(made["id"])
        if "href" in made:
            self.links.append(made["href"])
        if tag[0] == "h" and tag[1:].isdigit():
            self.headings.append(int(tag[1:]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in self.LOOSE:
            self.open.pop()
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"closed and not open: {tag}")

    def handle_data(self, text):
        self.words += text


@pytest.fixture
def parsed():
    return Page


ALLOWED_TAGS = frozenset({
    "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "h4", "p", "a", "nav", "ul", "li",
    "dl", "dt", "dd", "div", "span", "small", "br", "wbr", "code", "table", "caption", "thead", "tbody", "tr", "th",
    "td", "details", "summary", "article", "figure", "figcaption", "svg", "defs", "pattern", "rect", "path", "text",
})  # fmt: skip


@pytest.fixture
def check_page():
    """Check that a page is in order, runs nothing and loads nothing; returns it parsed."""

    def check(text, folder=None):
        page = Page(text)
        assert not page.wrong
        assert {tag for tag, _ in page.tags} <= ALLOWED_TAGS
        assert len(page.ids) == len(set(page.ids))
        for _, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcdoc", "action")]
        for link in page.links:
            if link.startswith("#"):
                assert link[1:] in page.ids, link
            else:
                assert link.replace("..", "").startswith(("findings/", "/")), link
                assert link.endswith("/finding.html")
                assert ":" not in link
                assert folder is None or (folder / link).is_file(), link
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
        tables = [tag for tag, _ in page.tags if tag == "table"]
        assert len(tables) == [tag for tag, _ in page.tags].count("caption")
        assert all("scope" in made for tag, made in page.tags if tag == "th")
        assert "default-src 'none'" in text
        return page

    return check
