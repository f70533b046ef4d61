"""Hooks on the import of a module, in programs of somebody else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from npudiff.run.on_import import STARTUP, VARIABLE, hooked

HOOK = """
def called(execute):
    print("before {name}")
    def executed(module):
        execute(module)
        print("after", module.__name__, module.VALUE)
    return executed
"""


@pytest.fixture
def modules(tmp_path):
    """Write what is imported, its hooks, and a startup file of the user's."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(f"VALUE = {name!r}\nprint('in {name}')\n")
        (tmp_path / f"hook_{name}.py").write_text(HOOK.replace("{name}", name))
    (tmp_path / "sitecustomize.py").write_text("print('mine')\n")
    return tmp_path


def run(code, environment):
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def environment(modules, *names):
    """The environment of a program, hooked once for each of the names."""
    given = {**os.environ, "PYTHONPATH": str(modules)}
    for name in names:
        given = hooked(given, {name: f"hook_{name}:called"})
    return given


def test_a_hook_is_called_around_the_first_import_of_its_module(modules):
    said = run("import one, importlib, two; importlib.reload(one)", environment(modules, "one"))
    assert said == ["mine", "before one", "in one", "after one one", "in two", "in one"]


def test_several_hooks_stand_beside_each_other_and_the_users_startup_file_runs_once(modules):
    given = environment(modules, "one", "two", "one")
    assert given["PYTHONPATH"].split(os.pathsep) == [str(STARTUP), str(modules)]
    said = run("import two", given)
    assert said == ["mine", "before two", "in two", "after two two"]
    code = "import subprocess, sys, two; subprocess.run([sys.executable, '-c', 'import one'])"
    assert run(code, given).count("mine") == 2


def test_who_asks_where_a_module_is_does_not_disarm_its_hook(modules):
    code = "import importlib.util as u; u.find_spec('one'); u.find_spec('one'); print('asked'); import one"
    assert run(code, environment(modules, "one")) == ["mine", "asked", "before one", "in one", "after one one"]


def test_a_module_that_was_found_twice_is_hooked_once(modules):
    code = """
import importlib.util as u
first, second = (u.find_spec("one") for _ in range(2))
for spec in (first, second):
    module = u.module_from_spec(spec)
    spec.loader.exec_module(module)
"""
    assert run(code, environment(modules, "one")) == ["mine", "before one", "in one", "after one one", "in one"]


def test_a_program_that_imports_none_of_the_modules_pays_nothing(modules):
    code = "import sys; print([name for name in ('npudiff', 'json', 'pathlib', 'hook_one') if name in sys.modules])"
    without = run(code, {**os.environ, "PYTHONPATH": str(modules)})
    assert run(code, environment(modules, "one")) == without


def test_the_folder_of_the_startup_file_is_not_seen_by_the_program(modules):
    code = f"import sys; print({str(STARTUP)!r} in sys.path)"
    assert run(code, environment(modules, "one")) == ["mine", "False"]


def test_a_module_that_is_not_there_is_missing_as_it_would_be(modules):
    code = "\ntry: import three\nexcept ModuleNotFoundError as error: print(error)"
    given = hooked(environment(modules), {"three": "hook_one:called"})
    assert run(code, given) == ["mine", "No module named 'three'"]


def test_what_was_hooked_before_stays(modules):
    assert environment(modules, "one", "two")[VARIABLE] == "one=hook_one:called two=hook_two:called"
