"""What the documents say is what happens: commands parse, examples run, the finding in the README is found."""

from __future__ import annotations

import re
import shlex
from datetime import date
from pathlib import Path

import pytest
import yaml

import real_bugs
from npudiff.cli import main
from npudiff.commands.arguments import DEFAULT_ROOT, build_parser
from npudiff.errors import ExitCode
from npudiff.gate.known import read_known
from npudiff.run.discovery import load_component, select_implementations

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted(
    ROOT.glob("docs/*.md")
)
README = (ROOT / "README.md").read_text(encoding="utf-8")

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def commands(text):
    """Every ``npudiff`` command line of a document: indented, after a prompt, or between backticks."""
    lines = re.findall(r"^(?:    |\$ )(npudiff .+)$", text, re.MULTILINE) + re.findall(r"`(npudiff [^`]+)`", text)
    return [shlex.split(line) for line in lines if "..." not in line]


@by_name
def test_every_command_line_parses(document):
    for _, *arguments in commands(document.read_text(encoding="utf-8")):
        if (
            arguments[0] in ("check", "list", "replay", "doctor", "virtual", "score", "gate", "report")
            and "--help" not in arguments
            and len(arguments) > 1
        ):
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
    (entry,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "known_issues.toml"
    path.write_text(entry, encoding="utf-8")
    (issue,) = read_known(path, date(2026, 11, 23))
    component = load_component(issue.component)
    assert issue.where.checked(component.axes, "guide").boxes[0]["query_length"] == (1,)
    assert issue.implementation in {item.name for item in select_implementations([component], [])}


@by_name
def test_every_link_to_a_file_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_commands_of_the_documents_are_found():
    assert len(commands(README)) >= 5


@pytest.mark.parametrize("name", ["README.md", "docs/add-your-kernel.md"])
def test_the_example_kernel_is_right(name, tmp_path, capsys):
    code = re.search(r"```python\n(# my_kernels\.py\n.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my_kernels.py"
    path.write_text(code.group(1), encoding="utf-8")
    arguments = ["check", "swa_mask", "--impl", str(path), "--target", "sim", "--output", str(tmp_path), "--seed", "1"]
    assert main(arguments) == ExitCode.CLEAN
    assert "ok, 5 properties" in capsys.readouterr().out


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
