"""The file of known issues: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import os
import random
import string
import time
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npudiff.errors import UsageError
from npudiff.gate.known import MOST_DAYS, read_known
from npudiff.gate.triage import triage
from npudiff.gate.versions import Machine, Range, Versions, version_of
from npudiff.run.plan import Request, make_plan

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
        (ENTRY.replace("2027-01-31", '"2027-01-31"'), "expires must be a day without quotes, such as 2027-01-31, got "),
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


MANY = 2**19


@pytest.mark.few(8)
@pytest.mark.parametrize(
    "text",
    [
        "a." * (MANY - 5) + "a = 1",
        '"a".' * (MANY // 3) + "a = 1",
        "[" + "a." * (MANY // 2 - 5) + "a]",
        "[" + "a." * 2000 + "a]\n" + "".join(f"x{number}.y = 1\n" for number in range(20_000)),
        "[[" + "a . " * (MANY // 3) + "a]]",
        "a" * (2 * MANY - 20),
        '"' * (2 * MANY - 20),
        "'\"" * (MANY - 20),
        "x = {" * (MANY // 4),
        "x = [" * (MANY // 4),
        'x = """' + "\n" * (2 * MANY - 30) + '"""',
        "x = " + "9" * 5000,
        "x" * 900_000 + " = 1",
        ENTRY + f'where = ["window={"9" * 5000}"]',
        ENTRY + f'where = ["window=0..{"9" * 5000}"]',
        ENTRY + f'where = ["window={"1," * (MANY // 2)}1"]',
        ENTRY + "where = [" + f'"window={",".join(map(str, range(300)))}",' * 500 + "]",
        ENTRY + f'cann = "{"=   " * (MANY // 4)}"',
        ENTRY + f'cann = "==8.5rc{"1" * 8000}"',
        ENTRY + f'cann = "=={"1." * 100_000}"',
        ENTRY.replace("https://example.org/issues/7", "https://[::1"),
        ENTRY.replace("2027-01-31", "9999-12-31"),
        ENTRY + "reason = [" + "1," * (MANY // 2) + "]",
    ],
    ids=range(23),
)
def test_a_file_that_is_made_to_take_long_is_refused_soon(read, text):
    began = time.monotonic()
    with pytest.raises(UsageError):
        read(text)
    assert time.monotonic() - began < 15


def test_sentences_with_many_dots_are_no_keys(read):
    said = "one. two. three. " * 20
    (issue,) = read(ENTRY + f'reason = "{said}" # {said}\n')
    assert issue.reason == said


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = tmp_path / "known_issues.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "circle" else "/dev/zero")
    with pytest.raises(UsageError, match="cannot be read"):
        read_known(path, TODAY)


NASTY = (
    "true", "-1", "0", "1e400", "nan", "inf", "9" * 5000, '""', '"../.."', '"\\u001b]0;x\\u0007"', '"\\u0000"', "[]",
    "[[]]", "{}", '["a"]', '["window="]', '["=1"]', '["window=1..2..3"]', '["window=5..1"]', '["window=,"]',
    '["window=nan"]', '["window=-9223372036854775809"]', "2027-01-31T00:00:00Z", "0001-01-01", "9999-12-31", "00:00:00",
    '"' + "x" * 5000 + '"', '"equivalence"', '"sim"', "'''\n'''", '"%s"', '"{0}"', '"==8.*,!=8.5"', '"*?[a-"',
    f'["window={"9" * 4300}"]', f'["window=0..{"9" * 4300}"]', f'["window={"1" * 300}"]', '["window=1", "window=none"]',
)  # fmt: skip
KEYS = ("component", "implementation", "property", "verdict", "where", "case", "link", "expires", "reason",
        "intermittent", "target", "cann", "torch_npu", "soc", "x", "a.b", "[issue]", "[[issue]]")  # fmt: skip


def hostile(rng):
    """Entries with something nasty in them, or bytes."""
    lines = []
    for _ in range(rng.randrange(1, 4)):
        entry = [line for line in ENTRY.splitlines() if line and rng.random() < 0.97]
        for _ in range(rng.randrange(3)):
            entry.insert(rng.randrange(len(entry) + 1), f"{rng.choice(KEYS)} = {rng.choice(NASTY)}")
        lines += entry
    data = "\n".join(lines).encode()
    if rng.random() < 0.2:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place + rng.randrange(5) :]
    return data


def assert_hostile_files_are_harmless(folder, count, seed):
    """Read damaged files, and sort out what can be read, as a gate does."""
    rng = random.Random(seed)  # noqa: S311 - damage, not secrets
    plan = make_plan(Request(components=("swa_mask",), implementations=("eager",), target="sim"))
    path = folder / "known_issues.toml"
    whole = refused = 0
    began = time.monotonic()
    for _ in range(count):
        path.write_bytes(hostile(rng))
        try:
            triage(plan, read_known(path, TODAY), Machine("sim", "8.5"), TODAY, str(path))
            said = ""
        except UsageError as error:
            said = str(error)
        whole, refused = whole + (not said), refused + bool(said)
        assert said.startswith(str(path)) or not said
        assert [one.name for one in folder.iterdir()] == ["known_issues.toml"]
    assert min(whole, refused) > count / 20
    assert time.monotonic() - began < 0.1 * count


def test_hostile_files_are_harmless(tmp_path):
    assert_hostile_files_are_harmless(tmp_path, 400, seed=1)


@pytest.mark.slow
def test_thousands_of_hostile_files_are_harmless(tmp_path):
    assert_hostile_files_are_harmless(tmp_path, 5_000, seed=2)


def test_each_version_that_is_asked_for_has_to_be_there():
    here = Machine("npu", cann="8.5", torch_npu="2.7.1", soc="Ascend910B3")
    assert Versions(Range(">=8"), Range("==2.7.*"), "ascend*").reason_against(here) is None
    assert Versions(cann=Range(">=9")).reason_against(here) == "CANN 8.5, the issue is of >=9"
    assert Versions(torch_npu=Range("==2.6.*")).reason_against(here) == "torch_npu 2.7.1, the issue is of ==2.6.*"
    assert Versions(torch_npu=Range(">=2")).reason_against(Machine("sim")).startswith("torch_npu is not there")
