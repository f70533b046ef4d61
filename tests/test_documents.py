"""What the documents say is what happens: commands parse, examples run, the finding in the README is found."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import sys
import types
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest
import yaml

import benchmarks.__main__ as benchmarks
import npudiff
import real_bugs
import warm
from benchmarks import contracts, why_bounds
from benchmarks.measure import Row
from npudiff.cli import main
from npudiff.commands.arguments import DEFAULT_ROOT, build_parser
from npudiff.errors import ExitCode
from npudiff.gate.known import read_known
from npudiff.model.version import VERSION
from npudiff.run.discovery import component_names, load_component, select_implementations
from npudiff.serve.requests import CheckRequest, read_request

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY", "RELEASING")),
    *sorted(ROOT.glob("docs/*.md")),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")

COMMANDS = ("check", "self-test", "list", "replay", "doctor", "virtual", "score", "gate", "report", "serve")

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def commands(text):
    """Every ``npudiff`` command line of a document: indented, after a prompt, or between backticks."""
    lines = re.findall(r"^(?:    |\$ )(npudiff .+)$", text, re.MULTILINE) + re.findall(r"`(npudiff [^`]+)`", text)
    return [shlex.split(line) for line in lines if "..." not in line]


@by_name
def test_every_command_line_parses(document):
    for _, *arguments in commands(document.read_text(encoding="utf-8")):
        if arguments[0] in COMMANDS and "--help" not in arguments and len(arguments) > 1:
            assert build_parser().parse_args(arguments).command == arguments[0]


WORKFLOWS = sorted(ROOT.glob("docs/examples/*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is_and_may_do_no_more_than_they_need(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read", "actions": "read", "security-events": "write"}
    (job,) = workflow["jobs"].values()
    lines = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
    gates = [
        re.sub(r"\$\{\{.*?\}\}", "sim", line) for line in lines if re.search(r"npudiff (gate|doctor|report)", line)
    ]
    assert [line.partition("npudiff ")[2].split()[0] for line in gates][-2:] == ["gate", "report"]
    for line in gates:
        _, *arguments = shlex.split(line.replace("$BUDGET", "10m").replace("$ROTATING", "warns"))
        assert build_parser().parse_args(arguments).command == arguments[0]
    uploaded = [step["with"]["path"] for step in job["steps"] if "upload-artifact" in step.get("uses", "")]
    assert uploaded == [str(DEFAULT_ROOT)]


def test_the_known_issue_of_the_guide_is_read(tmp_path):
    text = (ROOT / "docs" / "gate-your-ci.md").read_text(encoding="utf-8")
    entry, instead = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "known_issues.toml"
    path.write_text(entry + re.sub(r"(?m)^where.*\n", "", instead), encoding="utf-8")
    (issue,) = read_known(path, date(2026, 11, 23))
    assert [str(one) for one in issue.instead] == ["window += 1"]
    component = load_component(issue.component)
    assert issue.where.checked(component.axes, "guide").boxes[0]["query_length"] == (1,)
    assert issue.implementation in {item.name for item in select_implementations([component], [])}


@by_name
def test_every_link_to_a_file_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_commands_of_the_documents_are_found():
    assert len(commands(README)) >= 2
    assert sum(len(commands(document.read_text(encoding="utf-8"))) for document in DOCUMENTS) >= 60


@pytest.mark.parametrize("name", ["README.md", "docs/add-your-kernel.md"])
def test_the_example_kernel_is_right(name, tmp_path, capsys):
    code = re.search(r"```python\n(# my_kernels\.py\n.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my_kernels.py"
    path.write_text(code.group(1), encoding="utf-8")
    arguments = ["check", "swa_mask", "--impl", str(path), "--target", "sim", "--output", str(tmp_path), "--seed", "1"]
    assert main(arguments) == ExitCode.CLEAN
    assert "ok, 6 properties" in capsys.readouterr().out


def test_the_finding_of_the_readme_is_found(tmp_path, capsys):
    block = re.search(r"<!-- finding: begin -->\n```console\n\$ (.+?)\n(.*?)```", README, re.DOTALL)
    arguments = shlex.split(block.group(1))[1:]
    assert main([*arguments, "--target", "sim", "--output", str(tmp_path)]) == ExitCode.FINDINGS
    seen = capsys.readouterr().out
    for label in ("FINDING", "case", "worst"):  # how it was found depends on the version of Hypothesis
        shown = re.search(rf"^ *{label} .*$", block.group(2), re.MULTILINE).group()
        assert shown.strip() in seen


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    pattern = re.search(r"s/\^ {4}\\\((.+)\\\)\$/", script).group(1)
    (command,) = re.findall(rf"^    ({pattern})$", README, re.MULTILINE)
    assert command == "python -m pip install -c constraints.txt -e '.[test]' && pytest"


def test_every_mutant_stands_in_the_tables_of_real_bugs():
    """``python tests/support/real_bugs.py`` writes them anew."""
    text = real_bugs.DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(real_bugs.BEGIN)[2] == real_bugs.tables()


OWN_WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))


@pytest.mark.parametrize("path", OWN_WORKFLOWS, ids=lambda path: path.stem)
def test_own_workflows_may_read_and_name_versions_of_what_they_use(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z/-]+@v\d+", step.get("uses", "actions/checkout@v4"))
            assert (ROOT / step["run"]).is_file() or not step["run"].startswith(".") if "run" in step else True
            for arguments in commands("".join(f"    {line}\n" for line in step.get("run", "").splitlines())):
                build_parser().parse_args(arguments[1:])


def test_ci_runs_on_every_supported_python_and_nights_run_what_takes_long():
    ci, nightly = OWN_WORKFLOWS
    assert "-m slow" in nightly.read_text(encoding="utf-8")
    steps = yaml.safe_load(nightly.read_text(encoding="utf-8"))["jobs"]["campaign"]["steps"]
    used = [step.get("uses", step.get("run", "")).partition("@")[0] for step in steps][-4:]
    assert used[0] == "actions/cache/restore"  # before and after the campaign: it goes on where it ended
    assert used[1].startswith("npudiff campaign --time 40m")
    assert used[2:] == ["actions/cache/save", "actions/upload-artifact"]
    assert len({str(step["with"]["key"]) for step in steps if "cache/" in step.get("uses", "")}) == 1
    tests = yaml.safe_load(ci.read_text(encoding="utf-8"))["jobs"]["tests"]
    environments = re.search(r"py\{([\d,]+)\}", (ROOT / "tox.ini").read_text(encoding="utf-8")).group(1).split(",")
    assert tests["strategy"]["matrix"]["python"] == [f"3.{name[1:]}" for name in environments]


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/[0-9]*.yml")), ids=lambda path: path.stem)
def test_issue_forms_have_fields_with_names_of_their_own_and_ask_what_is_needed(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def listed(heading):
    """Paths in the first column of the table that follows some words."""
    table = CONTRIBUTING.partition(heading)[2].partition("\n\n|")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "moe_finalize"])
def test_a_component_has_the_files_that_contributing_counts(name):
    """Operators have files of their own names in the simulator, some that of a component; so have backends."""
    carriers = {
        path.relative_to(ROOT).as_posix()
        for room in ("reference", "properties", "device", "npudiff", "tests", "benchmarks", "docs")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.stem in (name, f"test_{name}") and path.suffix != ".pyc"
        if not {"simulator", "backends", ".npudiff", "blind_kernels"} & set(path.relative_to(ROOT).parts)
        and "npudiff/" not in path.relative_to(ROOT).as_posix()
    }
    assert carriers == {path.replace("NAME", name) for path in listed("These files carry its name")}


WITHOUT_BASELINES = {"hybrid_pools", "state_pools"}
"""Nobody has said what ordinary tests of a component with a history are."""


def test_every_component_has_the_entries_that_contributing_counts():
    for path in listed("These get an entry each"):
        text = (ROOT / path).read_text(encoding="utf-8")
        missing = [name for name in component_names() if name not in text]
        assert set(missing) <= WITHOUT_BASELINES if path.endswith("baselines.py") else not missing, (path, missing)


PLACES = re.compile(r"`((?:reference|device|properties|npudiff|tests|benchmarks|docs)/[\w/.-]+\.(?:py|md|json|c))`")


@by_name
def test_every_file_that_a_document_names_is_there(document):
    for path in PLACES.findall(document.read_text(encoding="utf-8")):
        if not re.search(r"NAME|COMPONENT|FAMILY|OPERATOR|/X\.", path):
            assert (ROOT / path).is_file(), path


def test_the_life_of_one_case_names_files_that_are_there():
    life = (
        (ROOT / "ARCHITECTURE.md")
        .read_text(encoding="utf-8")
        .partition("## The life of one case")[2]
        .partition("##")[0]
    )
    named = re.findall(r"`([\w/]+\.py|[\w/]+/)`", life)
    assert len(named) > 15
    for path in (name.replace("X.py", "rms_norm.py") for name in named):
        assert (ROOT / path).exists() or (ROOT / "npudiff" / path).exists(), path


@pytest.mark.parametrize(("name", "lines"), [("README.md", 90), ("ARCHITECTURE.md", 90)])
def test_what_is_read_first_stays_one_page(name, lines):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= lines


def test_the_page_of_contracts_is_what_the_sources_say():
    assert contracts.PAGE.read_text(encoding="utf-8") == contracts.page()


PROGRAMS = (ROOT / "docs" / "use-from-programs.md").read_text(encoding="utf-8")


def test_the_program_of_the_guide_runs_and_a_result_has_what_its_table_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PROGRAMS, re.DOTALL)
    Path("guide.py").write_text(code, encoding="utf-8")
    names = runpy.run_path("guide.py")
    assert capsys.readouterr().out.startswith("clean ")
    for name in re.findall(r"`result\.(\w+)", PROGRAMS):
        assert hasattr(names["result"], name), name


def test_requests_of_the_guide_are_read():
    (line,) = re.findall(r"```json\n(.*?)\n```", PROGRAMS)
    given, request = read_request(json.loads(line))
    assert (given, request.component) == (1, "swiglu")
    table = PROGRAMS.partition("| field | what it is |\n| --- | --- |\n| `id`")[2].partition("\n\n")[0]
    told = set(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|)", table))
    assert {one.name for one in fields(CheckRequest)} <= told
    for text in re.findall(r"`(\{.*?\})`", PROGRAMS):
        read_request(json.loads(text))


def pages_of(nav):
    for entry in nav:
        for page in entry.values():
            yield from [page] if isinstance(page, str) else pages_of(page)


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert sorted(pages_of(nav)) == sorted(there)


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/api/*.md")), ids=lambda path: path.stem)
def test_pages_of_the_api_name_what_there_is_and_all_of_it(path):
    named = re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert named
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__


def test_what_npudiff_exports_stands_in_the_pages_of_the_api():
    text = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/api/*.md"))
    described = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    exceptions = {"NotApplicable", "TargetUnavailable"}
    assert set(npudiff.__all__) - described - exceptions == {"__version__"}


@pytest.mark.slow
def test_who_comes_from_allclose_has_a_test_that_runs(tmp_path):
    document = (ROOT / "docs" / "from-allclose.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(# test_my_kernel.py\n.*?)```", document, re.DOTALL)
    (tmp_path / "test_my_kernel.py").write_text(program)
    done = warm.run_pytest("-q", "-p", "no:cacheprovider", "test_my_kernel.py", cwd=tmp_path)
    assert "1 passed" in done.stdout, done.stdout
    (tmp_path / "test_my_kernel.py").write_text(program.replace("return (torch", "return 1.5 * (torch"))
    done = warm.run_pytest("-q", "-p", "no:cacheprovider", "test_my_kernel.py", cwd=tmp_path)
    assert "swiglu.my_kernel · equivalence · wrong value" in done.stdout


def test_the_page_of_bounds_says_what_is_measured():
    page = (ROOT / "docs" / "why-bounds.md").read_text(encoding="utf-8")
    rows = {int(keys.replace(",", "")): (float(over), float(bound)) for keys, over, bound in re.findall(
        r"^\| ([\d,]+) \| ([\d.]+)[^|]*\| ([\d.]+) \|$", page, re.MULTILINE)}  # fmt: skip
    found = {one.keys: (one.over_tolerance, one.over_bound) for one in why_bounds.one_key_more()}
    assert len(rows) == 5
    for keys, said in rows.items():
        assert said == pytest.approx(found[keys], rel=0.05)
    ways = [(one.unequal, one.largest, one.wrong) for one in why_bounds.ways_to_quantise()]
    said = re.findall(r"^\| [^|]+ \| ([\d,]+) \| (\d) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert [tuple(int(number.replace(",", "")) for number in row) for row in said] == ways
    picture = (ROOT / "docs" / "images" / "one-key-more.svg").read_text(encoding="utf-8")
    made = why_bounds.picture_of_a_window(why_bounds.one_key_more())  # the last digits are the processor's
    assert re.sub(r"\d+\.\d+", "", picture) == re.sub(r"\d+\.\d+", "", made)


def test_the_version_is_the_same_everywhere_and_dated():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, newest = re.findall(r"^## (.+)$", changelog, re.MULTILINE)[:2]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert first == "Unreleased"
    assert newest == f"{VERSION} ({citation['date-released']})"
    assert citation["version"] == VERSION


def test_modules_that_the_changelog_names_as_new_are_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("| before | now |")[2].partition("\n\n")[0]
    for row in text.splitlines()[2:]:
        parent = ""
        for name in re.findall(r"`([\w.]+)`", row.split("|")[2]):
            if name.startswith("npudiff"):
                parent = name.rpartition(".")[0]
            inner = name if name.startswith("npudiff") else f"npudiff.run.isolation.{name}"
            assert importlib.util.find_spec(parent + name if name.startswith(".") else inner), name


def test_benchmarks_write_into_the_page_of_measurements(tmp_path, monkeypatch):
    page, module = tmp_path / "measured.md", types.ModuleType("benchmarks.start")
    page.write_text(benchmarks.DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    module.rows = lambda: [Row("`npudiff --help`", "0.4 s", "≤ 0.3 s", holds=False)]
    monkeypatch.setitem(sys.modules, "benchmarks.start", module)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "start", "--update", str(page)])
    assert benchmarks.main() == 1
    before, _, rest = benchmarks.DOCUMENT.read_text(encoding="utf-8").partition(benchmarks.BEGIN)
    row = "| `npudiff --help` | 0.4 s **(missed)** | ≤ 0.3 s |"
    head = "| measured | result | asked for |\n| --- | --- | --- |"
    after = rest.partition(benchmarks.END)[2]
    expected = f"{before}{benchmarks.BEGIN}\n{head}\n{row}\n{benchmarks.END}{after}"
    assert page.read_text(encoding="utf-8") == expected
