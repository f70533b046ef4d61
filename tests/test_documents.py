"""What the documents say is what happens: commands parse, examples run, the finding in the README is found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import real_bugs
from npudiff.cli import build_parser, main
from npudiff.errors import ExitCode

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
            arguments[0] in ("check", "list", "replay", "doctor", "virtual", "score")
            and "--help" not in arguments
            and len(arguments) > 1
        ):
            assert build_parser().parse_args(arguments).command == arguments[0]


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
