"""``npudiff doctor --contract``: the table, what it costs a run, and what ends in one line."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from npudiff.commands.contract import WIDTH, contract_lines, grouped
from npudiff.errors import ExitCode, UsageError
from npudiff.model.contract import ACCEPTED, Answer, Contract, Release, Standing
from npudiff.run import discovery

MISSING = Answer(Standing.MISSING, "no such operator")
REFUSED = Answer(Standing.REFUSED, "no argument 'sink'")
CHANGED = Answer(Standing.CHANGED, "argument 'mode' is left out and by default 'b', not 'a'")
UNKNOWN = Answer(Standing.UNKNOWN, "in no listing")


def release(name, attend=ACCEPTED, norm=ACCEPTED, *, judged=False):
    return Release(name, f"{name}.whl", {"attend": attend, "norm": norm, "quiet": ACCEPTED}, judged)


CONTRACT = Contract(
    "backend",
    "1.3",
    7,
    (
        release("1.0", MISSING, REFUSED),
        release("1.1", REFUSED),
        release("1.2"),
        release("1.3", judged=True),
        release("1.4"),
        release("1.5", REFUSED),
        release("1.6", CHANGED, UNKNOWN),
    ),
    ("recorded from wheels",),
)

TABLE = """\
backend: 7 forms of calls, written for 1.3
  recorded from wheels

A  1 of 3 operators accepted as they are called: 1.0
B  2 of 3 operators accepted as they are called: 1.1, 1.5
C  3 of 3 operators accepted as they are called: 1.2 to 1.4
D  1 of 3 operators accepted as they are called: 1.6

operator  A            B            C            D
attend    missing      no [1]       yes          changed [2]
norm      no [1]       yes          yes          unknown [3]

yes everywhere: 1 other operator
[1]  no argument 'sink'
[2]  argument 'mode' is left out and by default 'b', not 'a'
[3]  in no listing
1.3: every call is accepted as it is, as far as it is known
"""


@pytest.fixture
def having(monkeypatch):
    """Make one contract the only one that is installed; returns a function of it, which keeps the paths it gets."""

    def install(found):
        def factory(paths):
            install.paths = list(paths)
            return found

        class Point(EntryPoint):
            def load(self):
                return factory

        points = {"backend": Point("backend", "", "npudiff.contracts")}
        original = discovery._entry_points
        monkeypatch.setattr(discovery, "_entry_points", lambda name: points if name == "contracts" else original(name))
        return install

    return install


def test_the_table():
    assert "\n".join(contract_lines(CONTRACT)) + "\n" == TABLE


def test_equal_releases_share_a_column_however_many_there_are():
    columns = grouped([release(f"1.{n}", Answer(Standing.REFUSED, str(n % 30))) for n in range(60)])
    assert list(columns)[25:28] == ["Z", "AA", "AB"]
    assert [len(members) for members in columns.values()] == [2] * 30


def test_no_line_is_wider_than_a_terminal():
    many = [release(f"1.{n}", Answer(Standing.REFUSED, f"reason {n} " + "long " * 40)) for n in range(20)]
    lines = list(contract_lines(replace(CONTRACT, releases=tuple(many))))
    assert max(map(len, lines)) <= WIDTH == 100
    assert sum(line.startswith("operator ") for line in lines) == 4  # 6 columns at once


def test_a_version_that_is_not_recorded_is_in_no_range():
    names = ("1.0", "1.1", "1.2", "1.2 (installed)", "1.4 (given)")
    (line,) = [
        line for line in contract_lines(replace(CONTRACT, releases=tuple(map(release, names)))) if line[:1] == "A"
    ]
    assert line.endswith(": 1.0 to 1.2, 1.2 (installed), 1.4 (given)")


def test_nothing_to_show_is_no_table():
    lines = list(contract_lines(replace(CONTRACT, releases=(release("1.3", judged=True),))))
    assert lines[3:] == [
        "A  3 of 3 operators accepted as they are called: 1.3",
        "",
        "1.3: every call is accepted as it is, as far as it is known",
    ]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ACCEPTED, ExitCode.CLEAN), (UNKNOWN, ExitCode.CLEAN), (CHANGED, ExitCode.FINDINGS),
        (REFUSED, ExitCode.FINDINGS), (MISSING, ExitCode.FINDINGS),
    ],
)  # fmt: skip
def test_the_judged_version_decides_the_exit_code(cli, having, answer, code):
    having(replace(CONTRACT, releases=(release("1.0", MISSING), release("1.3", answer, judged=True))))
    result = cli("doctor", "--contract")
    assert result.code == code
    last = result.out.splitlines()[-1]
    assert last.startswith("1.3: 1 operator not accepted as called" if code else "1.3: every call is accepted")


def test_given_paths_reach_the_contract(cli, having, tmp_path):
    install = having(CONTRACT)
    assert cli("doctor", "--contract", "a.whl", tmp_path).code == ExitCode.CLEAN
    assert [str(path) for path in install.paths] == ["a.whl", str(tmp_path)]


def test_a_contract_that_is_none_is_a_usage_error(cli, having):
    having("text")
    result = cli("doctor", "--contract")
    expected = "npudiff: entry point 'backend' of npudiff.contracts did not return a Contract\n"
    assert (result.code, result.err) == (ExitCode.USAGE, expected)


def test_without_any_contract_there_is_nothing_to_show(monkeypatch):
    monkeypatch.setattr(discovery, "_entry_points", lambda name: {})
    with pytest.raises(UsageError, match="--contract: no installed package has a contract"):
        discovery.load_contracts([])


def test_the_contract_of_torch_npu_is_found_and_shown(cli):
    result = cli("doctor", "--contract")
    assert result.out.startswith("torch_npu: ")
    assert "npu_scatter_pa_kv_cache" in result.out
    assert result.code == ExitCode.CLEAN


def test_a_wheel_that_is_not_there_is_one_line(cli):
    result = cli("doctor", "--contract", "gone.whl")
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert result.err == "npudiff: --contract: gone.whl: no such file or folder\n"
