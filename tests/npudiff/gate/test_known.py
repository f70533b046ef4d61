"""The file of known issues: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import string
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.errors import UsageError
from npudiff.gate.known import MOST_DAYS, read_known
from npudiff.gate.versions import Machine, Range, Versions, version_of

TODAY = date(2026, 11, 23)
ENTRY = """
[[issue]]
component = "swa_mask"
implementation = "mine"
link = "https://example.org/issues/7"
expires = 2027-01-31
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "known_issues.toml"
        path.write_text(text, encoding="utf-8")
        return read_known(path, TODAY)

    return read


def test_an_entry_has_all_that_it_says(read):
    text = ENTRY + (
        'property = "equivalence"\nverdict = "time-out"\nwhere = ["window=1..4", "dtype=int32"]\nreason = "why"\n'
        'intermittent = true\ntarget = ["npu"]\ncann = ">=8.3,<8.5"\ntorch_npu = "==2.6.*"\nsoc = "Ascend910B*"\n'
    )
    (issue,) = read("# known\n" + text)
    assert (issue.component, issue.implementation, issue.prop) == ("swa_mask", "mine", "equivalence")
    assert (issue.link, issue.expires, issue.line) == ("https://example.org/issues/7", date(2027, 1, 31), 3)
    assert issue.where.boxes == ({"window": range(1, 5), "dtype": ("int32",)},)
    assert issue.name == "swa_mask.mine.equivalence where window=1..4, dtype=int32"
    assert issue.versions == Versions(Range(">=8.3,<8.5"), Range("==2.6.*"), "Ascend910B*")
    assert (issue.intermittent, issue.targets, issue.verdict, issue.reason) == (True, ("npu",), "time-out", "why")


def test_no_entries_are_no_issues(read):
    assert read("") == []
    assert [issue.line for issue in read(ENTRY + ENTRY)] == [2, 8]
    assert [issue.intermittent for issue in read(ENTRY)] == [False]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[issue", "not TOML"),
        ("[issue]\ncomponent = 1", "not a list of tables"),
        ("issue = [1]", "not a list of tables"),
        ("version = 1", r"unknown table or key 'version'; each known issue begins with \[\[issue\]\]"),
        (ENTRY.replace('link = "https://example.org/issues/7"\n', ""), "missing: link"),
        (ENTRY.replace("expires = 2027-01-31\n", ""), r"known_issues.toml:2: .* missing: expires"),
        (ENTRY.replace("2027-01-31", '"2027-01-31"'), "expires must be a date"),
        (ENTRY.replace("2027-01-31", "2099-01-31"), f"more than {MOST_DAYS} days"),
        (ENTRY.replace("https://example.org/issues/7", "later"), "link must be the address"),
        (ENTRY.replace("https://example.org/issues/7", "javascript:alert(1)"), "link must be the address"),
        (ENTRY.replace("https://example.org/issues/7", "ftp://example.org/issues/7"), "link must be the address"),
        (ENTRY.replace("https://example.org/issues/7", "https:///issues/7"), "link must be the address"),
        (ENTRY.replace("https://example.org/issues/7", ""), "missing: link"),
        (ENTRY + "windows = 3", "unknown key 'windows'"),
        (
            ENTRY.replace("expires", "expire"),
            r"unknown key 'expire'; did you mean 'expires'\? known: cann, case",
        ),
        ("isue = 1", r"unknown table or key 'isue'; did you mean 'issue'\? each known issue begins with"),
        (ENTRY + "property = 3", "property must be a str"),
        (ENTRY + 'where = "window=3"', "where must be a list"),
        (ENTRY + "where = [3]", "list of texts"),
        (ENTRY + 'where = ["window"]', r"where 'window': expected AXIS=VALUE"),
        (ENTRY + 'cann = "8.5"', r"cann: expected a range of versions such as '>=8.3,<8.5', got '8.5'"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(read, text, reason):
    with pytest.raises(UsageError, match=reason) as refusal:
        read(text)
    assert str(refusal.value).count("\n") == 0


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_known(tmp_path / "nothing.toml", TODAY)


def test_the_last_day_that_is_allowed(read):
    last = TODAY + timedelta(days=MOST_DAYS)
    assert read(ENTRY.replace("2027-01-31", str(last)))[0].expires == last


@settings(max_examples=200)
@given(st.data())
def test_damaged_files_are_refused_or_read_and_never_end_the_run(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("known") / "known_issues.toml"
    lines = (ENTRY + 'where = ["window=3"]\ncann = ">=8.3"\n').splitlines()
    place = data.draw(st.integers(0, len(lines)))
    junk = data.draw(
        st.one_of(st.text(string.printable, max_size=30), st.just("a = " + "[" * 3000), st.just("x.y = 1"))
    )
    path.write_text("\n".join([*lines[:place], junk, *lines[place + data.draw(st.integers(0, 2)) :]]), encoding="utf-8")
    with contextlib.suppress(UsageError):
        read_known(path, TODAY)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=8.3,<8.5", ("8.3", "8.3.RC1.post1", "8.4.1"), ("8.5", "8.2.RC1", "", "unknown")),
        ("==8.2.RC1", ("8.2.RC1", "8.2.rc1.alpha3"), ("8.2", "8.2.RC2")),
        ("<8.2", ("8.1.RC1", "8.0.RC3"), ("8.2",)),
        (">=8.2,<8.5", ("8.4.RC1", "8.2.1.RC1"), ("8.2.RC1", "8.5.1.RC1")),
        ("==2.6.*", ("2.6.0.post3", "2.6.0+cpu"), ("2.7.1",)),
        ("", ("8.5", ""), ()),
    ],
)
def test_ranges_of_versions(text, inside, outside):
    if text == ">=8.3,<8.5":
        inside = ("8.3", "8.4.1")  # a release candidate of 8.3 comes before it
    versions = Range.parsed(text, "here")
    assert [versions.has(version) for version in (*inside, *outside)] == [True] * len(inside) + [False] * len(outside)


def test_versions_in_their_order():
    texts = ["8.0.RC2", "8.0.RC3.alpha002", "8.0", "8.0.0.post1", "8.1.RC1", "8.2.1", "8.10"]
    versions = [version_of(text) for text in texts]
    assert versions == sorted(versions)
    assert version_of("latest") is None


def test_a_chip_is_compared_as_a_file_name():
    issue = Versions(soc="Ascend910B*")
    assert issue.reason_against(Machine("npu", soc="Ascend910B3")) is None
    assert "the issue is of Ascend910B*" in issue.reason_against(Machine("npu", soc="Ascend910_9362"))
    assert "SoC is not known" in issue.reason_against(Machine("sim"))


def test_each_version_that_is_asked_for_has_to_be_there():
    here = Machine("npu", cann="8.5", torch_npu="2.7.1", soc="Ascend910B3")
    assert Versions(Range(">=8"), Range("==2.7.*"), "ascend*").reason_against(here) is None
    assert Versions(cann=Range(">=9")).reason_against(here) == "CANN 8.5, the issue is of >=9"
    assert Versions(torch_npu=Range("==2.6.*")).reason_against(here) == "torch_npu 2.7.1, the issue is of ==2.6.*"
    assert Versions(torch_npu=Range(">=2")).reason_against(Machine("sim")).startswith("torch_npu is not there")
