"""What a change touches, in a repository with modules that import each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from npudiff.errors import ExitCode, UsageError
from npudiff.gate.changes import Change, changed_since, imported, touched_by
from npudiff.run.discovery import load_component
from npudiff.run.plan import Request, make_plan
from npudiff.show.source_location import file_of


@pytest.fixture
def backend(repository):
    """A backend whose kernels use helpers, one at the top and one within a function."""
    files = {
        "backend/__init__.py": "",
        "backend/attention.py": "from .common import shared\nfrom . import tables\n",
        "backend/common.py": "def shared(): import backend.deep.late\n",
        "backend/tables.py": "",
        "backend/deep/__init__.py": "",
        "backend/deep/late.py": "import os, torch, backend.tables\n",
        "backend/other.py": "this is not python (",
        "csrc/kernel.cpp": "",
    }
    for name, text in files.items():
        path = repository.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    repository.git("add", ".")
    repository.git("commit", "-qm", "first")
    return repository


def names(paths, root):
    return sorted(path.relative_to(root).as_posix() for path in paths)


def test_imports_are_followed_through_packages_and_into_functions(backend):
    root = backend.folder.resolve()
    found = imported(frozenset([root / "backend" / "attention.py"]), root)
    assert names(found, root) == [
        "backend/__init__.py",
        "backend/attention.py",
        "backend/common.py",
        "backend/deep/__init__.py",
        "backend/deep/late.py",
        "backend/tables.py",
    ]
    other = root / "backend" / "other.py"
    assert imported(frozenset([other]), root) == {other}


def test_changes_are_those_of_the_branch_and_of_the_working_tree(backend):
    git, root = backend.git, backend.folder.resolve()
    git("checkout", "-qb", "feature")
    (root / "backend/tables.py").write_text("1")
    git("commit", "-qam", "second")
    git("checkout", "-q", "main")
    (root / "csrc/kernel.cpp").write_text("// of others")
    git("commit", "-qam", "on main, later")
    git("checkout", "-q", "feature")
    (root / "backend/common.py").write_text("2")
    (root / "new file.py").write_text("3")
    change = changed_since("main", root / "backend")
    assert change.root == root
    assert names(change.files, root) == ["backend/common.py", "backend/tables.py", "new file.py"]


@pytest.mark.parametrize("revision", ["nowhere", "--output=x", ""])
def test_a_revision_that_there_is_not_is_refused(backend, revision):
    with pytest.raises(UsageError, match="--since: git rev-parse"):
        changed_since(revision, backend.folder)
    assert not (backend.folder / "x").exists()


def test_a_folder_without_repository_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UsageError, match="--since: git rev-parse"):
        changed_since("main", tmp_path)


def order(result):
    """Implementations in the order in which their jobs ended."""
    import re

    return re.findall(r"npudiff\.swa_mask\.(\w+)\" name=\"equivalence\"", result.junit)


@pytest.mark.slow
def test_the_gate_runs_first_what_a_change_touches(gate, repository, tmp_path, monkeypatch):
    from npudiff.run import workers

    (tmp_path / "theirs.py").write_text((tmp_path / "mine.py").read_text().replace('name="', 'name="their_'))
    (tmp_path / "kernel.cpp").write_text("")
    (tmp_path / ".gitignore").write_text(".npudiff\n__pycache__\n")
    repository.git("add", ".")
    repository.git("commit", "-qm", "first")
    ran = []
    original = workers.run_job
    monkeypatch.setattr(workers, "run_job", lambda job, budget, progress: ran.append(job) or original(job, budget))

    def begins_with(*arguments):
        ran.clear()
        result = gate("--no-isolate", "--impl", "theirs.py", "--since", "HEAD", *arguments, examples=2)
        return next(job.subject.implementation.name for job in ran), result

    assert begins_with()[0] == "good"
    (tmp_path / "theirs.py").write_text((tmp_path / "theirs.py").read_text() + "\n# changed\n")
    first, result = begins_with()
    assert first == "their_good"
    assert "since HEAD: 1 files have changed; first swa_mask.their_bad swa_mask.their_good" in result.out
    repository.git("commit", "-qam", "second")
    (tmp_path / "kernel.cpp").write_text("changed")
    first, result = begins_with()
    assert first == "good"
    assert "no implementation is known to use kernel.cpp (--touches says which do)" in result.out
    assert "no implementation is known to use kernel.cpp" in result.summary.replace("\\", "")
    assert begins_with("--touches", "*.cpp=swa_mask")[1].out.count("is known to use") == 0
    for rule in ("kernel.cpp", "*.cpp=", "=swa_mask", "*.cpp=nothing"):
        assert gate("--since", "HEAD", "--touches", rule).code == ExitCode.USAGE


def test_a_rule_touches_the_components_that_it_names_and_no_other(tmp_path):
    plan = make_plan(Request(("swa_mask", "swiglu", "rms_norm"), target="sim"))
    names = {job.subject.names for job in plan.jobs}
    change = Change(tmp_path, frozenset([tmp_path / "csrc" / "mask.cpp", tmp_path / "csrc" / "other.cpp"]))
    one = touched_by(change, plan, ["csrc/m*=swa_mask"])
    assert one.implementations == {name for name in names if name[0] == "swa_mask"} != set()
    assert one.unknown == ("csrc/other.cpp",)
    two = touched_by(change, plan, ["csrc/m*=swa_mask", "*other*=swiglu,rms_norm"])
    assert two.implementations == names
    assert two.unknown == ()
    none = touched_by(change, plan, ["*.py=swa_mask"])
    assert none.implementations == set()
    assert none.unknown == ("csrc/mask.cpp", "csrc/other.cpp")


@pytest.mark.slow
def test_an_implementation_is_touched_by_its_own_file_and_by_what_that_imports():
    root = Path(__file__).parents[3]
    plan = make_plan(Request(("swa_mask", "swiglu"), target="sim"))
    subjects = {job.subject.names: job.subject for job in plan.jobs}

    def touched(*files):
        return touched_by(Change(root, frozenset(files)), plan, [])

    assert touched().implementations == set()
    own = file_of(subjects["swa_mask", "eager"].implementation.function)
    assert {component for component, _ in touched(own).implementations} == {"swa_mask"}
    assert touched(own).unknown == ()
    reference = file_of(load_component("swiglu").reference)
    assert {name for name in subjects if name[0] == "swiglu"} == touched(reference).implementations
    other = touched(root / "README.md")
    assert (other.implementations, other.unknown) == (set(), ("README.md",))
