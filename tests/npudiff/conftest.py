"""A toy component, small enough that every answer of the engine can be worked out by hand.

It doubles whole numbers. Test folders are not importable in importlib mode, so it is a fixture, ``toy``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import npudiff
from npudiff.draw.chosen import chosen
from npudiff.judge.compare import same_bits
from npudiff.judge.judge import EQUIVALENCE
from npudiff.model.component import Component, Property, Subject
from npudiff.model.constraints import Axis, Constraints
from npudiff.model.implementation import Implementation, Target
from npudiff.model.job import Job
from npudiff.reference.bounds import Expected
from npudiff.run import backends

AXES = {
    "count": Axis("how many numbers", range(1, 101)),
    "number": Axis("a number", range(1001)),
    "kind": Axis("a name", ("plain", "odd")),
}


@dataclass(frozen=True)
class ToyCase:
    """Numbers to double."""

    numbers: tuple[int, ...]
    kind: str = "plain"


@dataclass(frozen=True)
class ToyInputs:
    """Numbers as a tensor."""

    x: torch.Tensor
    kind: str


def _draw(boxes, choose):
    box = choose.pick(boxes)
    count = choose.value(box, "count", (1, 2, 3, 4))
    kind = choose.value(box, "kind", ("plain", "odd"))
    return ToyCase(tuple(choose.value(box, "number", range(1001)) for _ in range(count)), kind)


def double(inputs):
    """Compute what is right."""
    return inputs.x * 2


def _reference(inputs):
    value = inputs.x.to(torch.float64) * 2
    return {"y": Expected(value, torch.full_like(value, 0.5), torch.float32)}


def _check_case(case):
    if any(not 0 <= number <= 1000 for number in case.numbers):
        raise ValueError("numbers must lie in 0..1000")


def _repeats(subject, case):
    inputs = subject.component.inputs(case)
    return same_bits(subject.run(inputs), subject.run(inputs), "twice")


def _never_applies(subject, case):
    raise npudiff.NotApplicable("never")


REPEATS = Property("repeats", "twice the same", _repeats)
NEVER = Property("never", "says nothing", _never_applies)

COMPONENT = Component(
    name="toy",
    summary="doubles numbers",
    case_type=ToyCase,
    outputs=("y", "z"),
    axes=AXES,
    strategy=lambda constraints: chosen(partial(_draw, constraints.boxes)),
    inputs=lambda case: ToyInputs(torch.tensor(case.numbers, dtype=torch.float32), case.kind),
    reference=_reference,
    values=lambda case: {"count": (len(case.numbers),), "number": set(case.numbers), "kind": (case.kind,)},
    features=lambda case: [case.kind, *(["many"] if len(case.numbers) > 1 else [])],
    describe=lambda case: " ".join(str(number) for number in case.numbers),
    check_case=_check_case,
    coordinates=lambda inputs, output: {"place": torch.arange(len(inputs.x))},
    relations=(REPEATS, NEVER),
)


@dataclass
class Switch:
    """A target's context manager that says whether it is on."""

    on: bool = False
    times: int = 0
    history: list = field(default_factory=list)

    @contextlib.contextmanager
    def activate(self):
        self.on, self.times = True, self.times + 1
        try:
            yield
        finally:
            self.on = False


def job(function=lambda inputs, target: double(inputs), *, prop=EQUIVALENCE, supports=None, **changes):
    """Return the job of one function: ``function(inputs, target)``; ``changes`` are made to the component."""
    constraints = Constraints() if supports is None else Constraints.of(supports)
    item = Implementation("toy", "mine", function, constraints)
    switch = Switch()
    target = Target("here", "cpu", "0", switch.activate)
    return Job(Subject(replace(COMPONENT, **changes), item, target), prop, constraints)


def wrong_above(limit):
    """Return an implementation that is wrong for numbers above ``limit``."""

    def function(inputs, target):
        return torch.where(inputs.x > limit, inputs.x, double(inputs))

    return function


@pytest.fixture
def toy():
    return SimpleNamespace(
        component=COMPONENT,
        Case=ToyCase,
        Switch=Switch,
        double=double,
        job=job,
        wrong_above=wrong_above,
        REPEATS=REPEATS,
        NEVER=NEVER,
    )


RIGHT_KERNEL = '''
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

@npudiff.implementation("swa_mask", name="mine")
def swa_mask(inputs, target):
    """My kernel."""
    return window_mask(inputs.kv_lengths.to(target.device), inputs.capacity, inputs.window)
'''

WRONG_KERNEL = RIGHT_KERNEL.replace("inputs.window)", "(inputs.window or 10**6) + 1)")


@pytest.fixture
def kernel(tmp_path):
    """Write a user's kernel file; returns a function of its text (``right`` and ``wrong`` are ready made)."""
    ready = {"right": RIGHT_KERNEL, "wrong": WRONG_KERNEL}

    def write(text, name="my_kernel.py"):
        path = tmp_path / name
        path.write_text(ready.get(text, text), encoding="utf-8")
        return path

    return write


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; returns its exit code, standard output and standard error."""
    from npudiff.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # argparse leaves this way, and so may a user's file
            code = leaving.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=int(code or 0), out=captured.out, err=captured.err)

    return run


MASK_CASE = {"kv_lengths": [2], "window": 1, "spare": 0, "dtype": "int32", "column": False}


@pytest.fixture
def hostile(tmp_path, cli):
    """A finding folder of a built-in mutant, with changes; returns a function of the changes."""
    cli("check", "swa_mask", "--impl", "mask_left_context_512", "--target", "sim", "--case", json.dumps(MASK_CASE))
    (valid,) = (tmp_path / ".npudiff" / "findings").glob("*-mask_left_context_512-*")

    def change(**changes):
        content = json.loads((valid / "finding.json").read_text())
        (valid / "finding.json").write_text(json.dumps({**content, **changes}))
        return valid

    return change


PACKAGE = '''
"""A backend of somebody else."""
from pathlib import Path
from npudiff.model.backend import Backend, BackendUnavailable, Booted

BOOTS = []

def boot(checkout):
    BOOTS.append(checkout)
    if checkout is not None and not checkout.exists():
        raise BackendUnavailable(f"--backend small={checkout}: nothing there")
    return Booted("1.2", Path(__file__).parent)

class NotHere(RuntimeError):
    pass

BACKEND = Backend("small", "for this test", boot, __name__, (NotHere,), target="sim")
'''


@pytest.fixture
def small_backend(tmp_path, monkeypatch):
    """The folder of an installed package with a backend, whose entry point is found; it has no implementations yet."""
    folder = tmp_path / "installed" / "small_backend"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    point = importlib.metadata.EntryPoint("small", "small_backend:BACKEND", "npudiff.backends")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(backends, "_entry_points", lambda: {"small": point})
    monkeypatch.setattr(backends, "_rooms", {})
    yield folder
    for name in [one for one in sys.modules if one.partition(".")[0] == "small_backend"]:
        del sys.modules[name]
