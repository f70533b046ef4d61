"""Records from elsewhere: nothing in one is trusted, followed, or shown as HTML."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from npudiff.errors import UsageError
from npudiff.model.case import to_plain
from npudiff.show.finding import finding_page
from npudiff.show.picture import drawn, read_pictures
from npudiff.show.run_page import read
from npudiff.show.run_page import record as limits
from npudiff.show.run_page.page import run_page
from npudiff.show.run_page.read import StoredRun, finding_folder, read_record, read_records

HTML = '<script>alert(1)</script><img src=x onerror="alert(2)">\x1b[2J\x00\u202e&<!--'


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema_version": limits.SCHEMA_VERSION + 1}, "written by a newer npudiff (schema 2): upgrade"),
        ({"schema_version": 0}, "no schema_version"),
        ({"schema_version": 1.0}, "no schema_version"),
        ({"schema_version": 10**400}, "Exceeds|too large|newer npudiff"),
        ({"schema_version": True}, "no schema_version"),
        ({"schema_version": "1"}, "no schema_version"),
        ({"started": "yesterday"}, "not a time"),
        ({"started": "2026-01-02T03:04:05Z\n"}, "not a time"),
        ({"seconds": "long"}, "expected float, got str"),
        ({"seconds": -1}, "a number that is not between"),
        ({"seconds": 1e16}, "a number that is not between"),
        ({"judged": 1}, "expected bool, got int"),
        ({"ended": "well"}, "expected 'complete'"),
        ({"jobs": {}}, "expected a list, got dict"),
        ({"jobs": [3]}, "expected an object, got int"),
        ({"npudiff": "x" * 2001}, "a text of 2001 characters"),
        ({"scope": ["x"] * 50_001}, "50001 entries"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(record, put, change, expected):
    path = put({"schema_version": 1, **to_plain(record()), **change})
    with pytest.raises(UsageError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert any(one in str(caught.value) for one in expected.split("|"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "1", '{"schema_version": 1}', "[" * 100_000, '{"a":' * 100_000, "\xed\xa0", "1" * 5000],
)
def test_damage_is_one_line(put, text):
    kept, problems = read_records([put(text)])
    assert not kept
    assert len(problems) == 1
    assert "not read: " in problems[0]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_are_finite(record, put, constant):
    text = json.dumps({"schema_version": 1, **to_plain(record())}).replace('"seconds": 1.5', f'"seconds": {constant}')
    assert constant in text
    with pytest.raises(UsageError):
        read_record(put(text))


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "a\n", ".hidden", "x" * 300, "a b", "%2e%2e", "a\x00b", "é"]
)
def test_a_finding_is_a_name_and_no_path(record, job, put, tmp_path, name):
    with pytest.raises(UsageError, match="not the name of a folder"):
        read_record(put(record(jobs=(job(findings=(name,)),))))
    assert finding_folder(tmp_path, name) is None


def test_no_link_is_followed(tmp_path, make_finding, keep_finding):
    inside, outside = tmp_path / "in", tmp_path / "out"
    said = keep_finding(outside, make_finding(1))
    (inside / "findings").mkdir(parents=True)
    (inside / "findings" / said.folder).symlink_to(outside / "findings" / said.folder)
    assert finding_folder(inside, said.folder) is None
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "findings").symlink_to(outside / "findings")
    assert finding_folder(tmp_path / "third", said.folder) is None
    assert finding_folder(outside, said.folder) is not None


def test_a_linked_or_large_record_is_not_read(record, put, tmp_path, monkeypatch):
    path = put(record())
    (path.parent / "20260103T000000Z-x-y.json").symlink_to(path)
    (path.parent / "20260104T000000Z-x-y.json").mkdir()
    kept, problems = read_records([tmp_path / "out"])
    assert len(kept) == 1
    assert len(problems) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "runs").symlink_to(path.parent)
    assert read_records([tmp_path / "other"]) == ([], [])
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 100)
    kept, problems = read_records([tmp_path / "out"])
    assert not kept
    assert "at most 100 are read" in "".join(problems)


def test_one_that_is_damaged_does_not_hide_the_others(cli, record, put, tmp_path):
    put(record())
    put("{", name="20260103T000000Z-sim-8.5.json")
    result = cli("report", tmp_path / "out")
    assert result.code == 0
    assert result.err.count("\n") == 1
    assert "20260103T000000Z-sim-8.5.json: not read: " in result.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "20260103T000000Z-sim-8.5.json: not read: " in page
    assert "Every property held, in 10 cases." in page


def test_no_text_becomes_html(record, job, mutant, put, tmp_path, check_page, make_finding, keep_finding):
    """Every text of a record, and every text of a finding."""

    def spoilt(value):
        if isinstance(value, str):
            return HTML
        if isinstance(value, tuple):
            return tuple(spoilt(item) for item in value)
        if hasattr(value, "__dataclass_fields__"):
            kept = ("verdict", "ended", "started", "folder", "findings")
            return replace(value, **{n: spoilt(getattr(value, n)) for n in value.__dataclass_fields__ if n not in kept})
        return value

    detail = {"line": HTML, "context": HTML, "error": HTML, "then": HTML, "pattern": [HTML], "instead": [HTML]}
    bad = make_finding(1, component=HTML, implementation=HTML, property_name=HTML, verdict=HTML, detail=detail)
    said = keep_finding(tmp_path / "out", bad)
    count = (limits.Count(HTML, 3),)
    jobs = (
        job(verdict="wrong value", findings=(said.folder,), features=count, reasons=count, not_applicable=3),
        job(property_name="other"),
    )
    content = record(jobs=jobs, findings=(said,), mutants=(mutant(), mutant(found=False)), scope=("a",), problem="x")
    content = replace(spoilt(content), ended="defect")
    content = replace(content, findings=(replace(said, line=HTML, symptom=HTML),))
    put(content)
    kept, _ = read_records([tmp_path / "out"])
    text = run_page(kept, [HTML], [HTML], tmp_path / "out" / "report.html")
    check_page(text, tmp_path / "out")
    assert "alert(1)" in text
    assert not [sign for sign in ("\x1b", "\x00", "\u202e", "<img", "<!--") if sign in text]


SPOILT = "<script>alert(1)</script>\"'><b>{{ 7919*7919 }}{% raw %}${7919*7919}\u202e\u2066\u200b\x00\x1b[2J\x7f\x9b&lt;"
"""Markup, quotes, template syntax, bidi controls, invisible and control characters."""


def spoil(value, kept=()):
    """Return a copy of a dataclass, list or mapping whose texts are hostile, but for the fields named."""
    if isinstance(value, str):
        return SPOILT
    if isinstance(value, (tuple, list)):
        return type(value)(spoil(item, kept) for item in value)
    if isinstance(value, dict):
        return {name: spoil(item, kept) for name, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        names = [name for name in value.__dataclass_fields__ if name not in kept]
        return replace(value, **{name: spoil(getattr(value, name), kept) for name in names})
    return value


def assert_nothing_hostile(text):
    assert "alert(1)" in text
    assert not re.search(
        r"<script|<b>|62710561|[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", text
    )
    for attribute in re.findall(r'="[^"]*"', text):
        assert "'" not in attribute or "'none'" in attribute
        assert "<" not in attribute


def test_hostile_text_in_every_field_is_shown_as_text(
    record, job, mutant, put, tmp_path, check_page, make_finding, keep_finding
):
    out = tmp_path / "out"
    detail = {
        **dict.fromkeys(("line", "context", "then", "error", "output", "problem"), "x"),
        "pattern": ["x"], "instead": ["x"], "first": {"line": "x", "pattern": ["x"]},
        "published_criteria": [{"criterion": "x", "passes": True, "detail": "x"}],
    }  # fmt: skip
    odd = {"script": f"no script: {SPOILT}", "also_wrong": {SPOILT: 2.0}}
    made = spoil(make_finding(1, detail=detail, environment={"x": "x"}))
    made = replace(made, case={SPOILT: [SPOILT]}, detail={**made.detail, **odd}, environment={SPOILT: SPOILT})
    said = keep_finding(out, made)
    (picture,) = (out / "findings").glob("*/picture.json")
    plain = json.loads(picture.read_text(encoding="utf-8"))
    plain["pictures"][0] |= {"caption": SPOILT, "title": SPOILT, "labels": [SPOILT] * 3}
    picture.write_text(json.dumps(plain), encoding="utf-8")

    count = (limits.Count("x", 3),)
    jobs = (
        job(verdict="wrong value", findings=(said.folder,), features=count, reasons=count, not_applicable=3),
        job(property_name="other"),
        job(implementation="exact", exact=True, without=("x",)),
    )
    known = (limits.KnownRecord("x", "x", closes=True, link="x", expires="x"),)
    full = record(jobs=jobs, mutants=(mutant(), mutant(found=False)), scope=("a",), problem="x", known=known, gate="x",
                  seed="x", examples="x", budget="x")  # fmt: skip
    spoilt = replace(spoil(full, ("verdict", "ended", "started", "folder", "findings")), ended="defect")
    spoilt = replace(spoilt, findings=(replace(said, line=SPOILT, symptom=SPOILT),))
    narrowed = replace(spoilt, started="2026-01-01T00:00:00Z", scope=(), judged=False, jobs=(spoilt.jobs[1],))
    earlier = replace(narrowed, findings=(replace(said, folder="gone", line=SPOILT, symptom=SPOILT),))
    runs = [StoredRun(one, out) for one in (earlier, spoilt)]
    text = run_page(runs, [SPOILT], [SPOILT], out / "report.html")
    check_page(text, out)
    assert_nothing_hostile(text)
    assert text.count("alert(1)") > 60

    pictures = [(caption, drawn(grid)) for caption, grid in read_pictures(out / "findings" / said.folder)]
    assert len(pictures) == 1
    text = finding_page(made, out / "findings" / said.folder, pictures, [SPOILT])
    assert_nothing_hostile(text)
    assert text.count("alert(1)") > 20


def test_the_words_of_a_finding_may_be_of_any_shape(record, job, put, tmp_path, check_page, make_finding, keep_finding):
    out = tmp_path / "out"
    details = [
        {"line": 3, "worst_ratio": [], "output": {}}, {"line": "x", "worst_ratio": "much", "output": 1, "where": 7},
        {"line": "x", "also_wrong": [1]}, {"line": "x", "gain": {"error": {}}, "output": "y"},
        {"line": "x", "published_criteria": [1]}, {"line": "x", "more": {}}, {"line": "x", "first": "y"},
        {"line": "x", "pattern": [1, 2]}, {"line": "x" * 10**5},
    ]  # fmt: skip
    said = [keep_finding(out, make_finding(n, detail=detail)) for n, detail in enumerate(details)]
    said = [replace(one, line=one.line[:300], symptom=str(n)) for n, one in enumerate(said)]
    jobs = (job(verdict="wrong value", findings=tuple(one.folder for one in said)),)
    put(record(jobs=jobs, findings=tuple(said)))
    kept, problems = read_records([out])
    assert not problems
    text = run_page(kept, problems, [], out / "report.html")
    check_page(text, out)
    assert text.count("its words are damaged: ") >= 5
    assert len(text) < 200_000


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("--impl my/kernel.py", " --impl my/kernel.py"),
        ("--impl 'a b.py'", " --impl &#39;a b.py&#39;"),
        ("--impl x; rm -rf ~", ""),
        ("; rm -rf ~", ""),
        ("--impl '$(x)'", " --impl &#39;$(x)&#39;"),
        ("--impl $(x)", " --impl &#39;$(x)&#39;"),
        ("--impl 'x", ""),
    ],
)
def test_the_line_to_paste_is_one_command(record, job, put, tmp_path, make_finding, keep_finding, options, shown):
    out = tmp_path / "out"
    said = keep_finding(out, make_finding(1, options=options))
    put(record(jobs=(job(verdict="wrong value", findings=(said.folder,)),), findings=(said,)))
    text = run_page(read_records([out])[0], [], [], out / "report.html")
    assert f"/findings/{said.folder}{shown}</code>" in text


TEXTS = st.sampled_from([HTML, "", "../x", "a" * 3000, "npu", "toy", "holds"]) | st.text(max_size=20)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from([10**400, 1e308, -0.0, 2**63]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def _places(plain, path=()):
    """All places in plain values, from the outermost on."""
    yield path
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for name, value in items:
        yield from _places(value, (*path, name))


def _changed(plain, path, value):
    if not path:
        return value
    copy = dict(plain) if isinstance(plain, dict) else list(plain)
    copy[path[0]] = _changed(copy[path[0]], path[1:], value)
    return copy


def plain_record(record, job, mutant, said):
    count = (limits.Count("many", 3),)
    jobs = (
        job(verdict="wrong value", findings=(said.folder,), features=count, reasons=count, alone=(1, 2)),
        job(property_name="b", exact=True),
    )
    full = record(jobs=jobs, findings=(said,), mutants=(mutant(), mutant(found=False)), scope=("--where a=1",))
    return json.loads(json.dumps({"schema_version": 1, **to_plain(full)}))


def _survives(plain, path, check_page):
    path.write_text(json.dumps(plain), encoding="utf-8")
    kept, problems = read_records([path])
    assert len(kept) + len(problems) == 1
    root = path.parent.parent
    assert all(one.root == root for one in kept)
    check_page(run_page(kept, problems, [], root / "report.html"), root)
    return kept


@pytest.fixture
def fuzz(record, job, mutant, put, tmp_path, check_page, make_finding, keep_finding):
    said = keep_finding(tmp_path / "out", make_finding(1))
    path = put("{}")
    valid = plain_record(record, job, mutant, said)
    assert _survives(valid, path, check_page)
    places = list(_places(valid))

    def run(examples):
        accepted = []

        @settings(max_examples=examples, deadline=None, database=None, derandomize=True,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(st.lists(st.tuples(st.sampled_from(places), ODD), min_size=1, max_size=3))
        def hostile(changes):
            plain = valid
            for place, value in changes:
                try:
                    plain = _changed(plain, place, value)
                except (KeyError, IndexError, TypeError):
                    continue  # an earlier change took the place away
            accepted.append(len(_survives(plain, path, check_page)))

        hostile()
        assert 0 < sum(accepted) < len(accepted)  # some fit, and most do not

    return run


def test_hostile_records_escape_nothing(fuzz):
    fuzz(200)


@pytest.mark.slow
def test_many_hostile_records_escape_nothing(fuzz):
    fuzz(3_000)


@pytest.mark.slow
def test_a_record_of_many_names_stays_small(record, job, mutant, tmp_path, check_page):
    places = [record(target=f"t{n}", jobs=(job(),), started=f"2026-01-02T03:04:{n:02}Z") for n in range(60)]
    wide = record(
        jobs=tuple(job(implementation=f"i{n}", component=f"c{n % 700}") for n in range(20_000)),
        mutants=tuple(mutant(implementation=f"m{n}") for n in range(20_000)),
    )
    kept = [StoredRun(one, tmp_path) for one in [*places, wide]]
    text = run_page(kept, ["x"] * 10_000, ["y"] * 10_000, tmp_path / "r.html")
    check_page(text)
    assert len(text) < 6_000_000
    assert text.count("TOY-1") == 2_000
    for said in ("more implementations are left out", "more targets are left out", "more mutants are left out"):
        assert said in text


def peak(action):
    """MiB that are in use at once while something is done."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


EMPTY = {"lists": "[]", "objects": "{}", "nulls": "null", "texts": '""', "nested": '[{"a":[]}]'}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_record_of_many_values_takes_little_memory(put, kind):
    one = EMPTY[kind]
    text = '{"schema_version": 1, "jobs": [' + ",".join([one] * (2**24 // (len(one) + 2))) + "]}"
    assert len(text) < limits.MAX_RECORD_BYTES
    path = put(text)
    began = time.monotonic()
    assert peak(lambda: read_records([path])) < 200
    assert time.monotonic() - began < 30
    assert "not read: " in read_records([path])[1][0]


def test_records_are_read_up_to_their_bytes_in_all(record, put, tmp_path, monkeypatch):
    for second in range(5):
        put(record(started=f"2026-01-02T03:04:0{second}Z"), name=f"2026010{second + 1}T000000Z-sim-8.5.json")
    size = next((tmp_path / "out" / "runs").iterdir()).stat().st_size
    monkeypatch.setattr(read, "MOST_BYTES", 2 * size)
    kept, problems = read_records([tmp_path / "out"])
    assert [one.record.started[-2:-1] for one in kept] == ["2", "3", "4"]  # the latest, up to the one that is too much
    assert problems == [f"2 records were left out, since those before have more than {2 * size} bytes"]
