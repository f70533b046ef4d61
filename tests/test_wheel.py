"""What is installed: one name on the import path, whatever names a kernel author's own folder has.

With ``-m slow``, commands are run where the wheel is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("device", "properties", "reference")

OWN = 'WHO = "mine"\n'
CONFTEST = """
import device, properties, reference, tests
assert {one.WHO for one in (device, properties, reference, tests)} == {"mine"}
"""
KERNEL = """
import npudiff
import device
from reference import keys_of

@npudiff.implementation("swa_mask", name="mine")
def swa_mask(inputs, target):
    import properties
    assert (device.WHO, properties.WHO) == ("mine", "mine")
    lengths = inputs.kv_lengths.to(target.device).reshape(-1, 1, 1)
    first = 0 * lengths if inputs.window is None else lengths - inputs.window
    key = keys_of(inputs.capacity, target.device)
    return (key < first) | (key >= lengths)
"""
FILES = {
    "conftest.py": CONFTEST,
    "device/__init__.py": OWN,
    "my.py": KERNEL,
    "properties.py": OWN,
    "reference.py": OWN + "import torch\ndef keys_of(count, device): return torch.arange(count, device=device)\n",
    "tests/__init__.py": OWN,
    "tests/test_mine.py": "def test_mine(): import device; assert device.WHO == 'mine'\n",
    "wrong.py": KERNEL.replace("key < first", "key <= first"),
}


def run(words, folder, **more):
    """Run a command in a folder, without what the environment of these tests says about Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, **more
    )


def build(source, destination, kind):
    run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", destination], source, check=True)
    (built,) = destination.iterdir()
    return built


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture
def install(tmp_path):
    """Install what pip is told into an environment that borrows all other packages; returns its Python."""

    def made(*what):
        run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], tmp_path, check=True)
        python = tmp_path / "venv/bin/python"
        (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
        (packages / "zz_borrowed.pth").write_text("\n".join(entry for entry in sys.path if "site-packages" in entry))
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
        run([*pip, "--no-build-isolation", *what], tmp_path, check=True)
        return python

    return made


@pytest.fixture
def repository(tmp_path):
    """A kernel author's folder, in which every name that npudiff's folders have is taken."""
    folder = tmp_path / "repository"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.slow
def test_a_wheel_holds_one_package_also_when_it_is_built_from_an_sdist(wheel, tmp_path):
    names = names_in(wheel)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"npudiff"}
    files = [path.relative_to(ROOT) for room in (*ROOMS, "npudiff") for path in (ROOT / room).rglob("*.py")]
    modules = {path.as_posix() if path.parts[0] == "npudiff" else f"npudiff/{path.as_posix()}" for path in files}
    assert len(modules) > 400
    assert modules <= names
    with tarfile.open(build(ROOT, tmp_path / "sdist", "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert names_in(build(source, tmp_path / "again", "wheel")) == names


@pytest.mark.slow
def test_commands_run_beside_namesakes(wheel, install, repository):
    python = install(wheel)
    short = ("--target", "sim", "--examples", "5")

    def npudiff(*words):
        return run([python, "-m", "npudiff", *words], repository)

    where = run([python, "-c", "import npudiff.device; print(npudiff.device.__file__)"], repository).stdout
    assert str(repository.parent / "venv") in where
    checked = npudiff("check", "swa_mask", "--impl", "my.py", *short)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    wrong = npudiff("check", "swa_mask", "--impl", "wrong.py", "--target", "sim", "--hypothesis-profile", "ci")
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    again = npudiff("replay", ".npudiff/findings", "--impl", "wrong.py")
    assert again.returncode == 1, again.stdout + again.stderr
    assert "FAILED" in again.stdout
    assert "ERROR" not in again.stdout
    gated = npudiff("gate", "swa_mask", "--impl", "my.py", "--budget", "1s", *short)
    assert gated.returncode == 0, gated.stdout + gated.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_properties_and_the_users_own_tests_run_in_one_pytest(wheel, install, repository, mode):
    words = ["--pyargs", "npudiff.properties", "tests", "--impl", "my.py", "--target", "sim", "--examples", "5"]
    tested = run([install(wheel), "-m", "pytest", "-q", f"--import-mode={mode}", *words], repository)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "7 passed" in tested.stdout


@pytest.mark.slow
def test_an_editable_install_is_the_checkout(install, repository):
    python = install("-e", ROOT)
    code = "import npudiff.{0}, sys; print(npudiff.{0}.__file__, *sorted(sys.modules))"
    for room in ROOMS:
        done = run([python, "-c", code.format(room)], repository)
        file, *modules = done.stdout.split()
        assert Path(file).resolve() == ROOT / room / "__init__.py", done.stderr
        assert not set(ROOMS) & set(modules)
