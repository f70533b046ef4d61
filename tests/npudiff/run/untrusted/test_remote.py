"""The judge's side of a candidate: what it makes of what its process says, and of what it does."""

from __future__ import annotations

import ctypes
import json
import math
import os
from multiprocessing import Pipe
from multiprocessing.reduction import recv_handle

import pytest
import torch

from npudiff.errors import UsageError
from npudiff.model.constraints import Constraints
from npudiff.model.faults import Kind, RemoteError
from npudiff.reference.swiglu import Activation, SwigluInputs
from npudiff.run.discovery import load_target
from npudiff.run.untrusted import remote
from npudiff.run.untrusted.remote import Nursery, untrusted_implementations

INPUTS = SwigluInputs(torch.ones(2, 4), Activation.SILU, None, math.inf)
MINE = {"component": "swiglu", "name": "mine", "summary": "What it is.", "supports": [{}], "stateful": False}
NO_OUTPUTS = {"outputs": []}


class Scripted:
    """A nursery whose candidates say what they are told to, whatever they are asked."""

    warm_up = call = 5.0

    def __init__(self, *said):
        self.said, self.asked, self.lines = said, [], []

    def ask(self, question):
        ours, theirs = Pipe()
        self.asked.append(next(iter(question)))
        self.lines.append(theirs)
        said = [{"status": 0}] if "end" in question else [{"number": os.getpid()}, *self.said]
        for one in said:
            theirs.send_bytes(one if isinstance(one, bytes) else json.dumps(one).encode())
        return ours


def implementation(*said, **changes):
    """The implementation of a candidate that says this after it was described, and its nursery."""
    nursery = Scripted({"implementations": [{**MINE, **changes}]}, *said)
    (item,) = untrusted_implementations(nursery, "mine.py")
    return item, nursery


def test_an_implementation_is_what_its_process_says():
    item, _ = implementation(supports=[{"rounding": ["once"]}])
    assert (item.component, item.name, item.summary) == ("swiglu", "mine", "What it is.")
    assert item.constraints == Constraints.of([{"rounding": ("once",)}])
    assert (item.origin, item.selector, item.factory) == ("mine.py", "mine.py", None)
    assert item.untrusted
    assert implementation(stateful=1)[0].factory is None
    assert implementation(stateful=True)[0].factory is not None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"refused": "--impl mine.py: \x1b no"}, "--impl mine.py: ? no"),
        ({}, "does not say what is in it"),
        ({"implementations": None}, "does not say what is in it"),
        ({"implementations": [7]}, "does not say what is in it"),
        ({"implementations": [{**MINE, "name": 7}]}, "does not say what is in it"),
        ({"implementations": [{**MINE, "summary": None}]}, "does not say what is in it"),
        ({"implementations": [MINE] * 4}, "does not say what is in it"),
        ({"implementations": [{**MINE, "supports": {}}]}, "the candidate sent no constraints"),
        ({"implementations": [{**MINE, "component": "hybrid_pools"}]}, "is judged by calls of an object"),
        ([], "fails to import: process died"),
    ],
)
def test_what_is_no_description_is_refused(monkeypatch, said, why):
    monkeypatch.setattr(remote, "MOST_IMPLEMENTATIONS", 3)
    with pytest.raises(UsageError) as caught:
        untrusted_implementations(Scripted(said), "mine.py")
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("said", "name", "kind"),
    [
        ({"raised": ["ValueError", "no", "RAISED", ["kernels.py:1", 7]]}, "ValueError", Kind.RAISED),
        ({"raised": ["RuntimeError", "507015", "FAULT", None]}, "RuntimeError", Kind.FAULT),
        ({"raised": ["RuntimeError", "no", "HOLDS", []]}, "Malformed", Kind.RAISED),
        ({"raised": ["RuntimeError", "no"]}, "Malformed", Kind.RAISED),
        ({"raised": ["RuntimeError", "no", "RAISED"]}, "Malformed", Kind.RAISED),
        ({"raised": ["RuntimeError", "no", "RAISED", [], []]}, "Malformed", Kind.RAISED),
        ({"raised": ["RuntimeError", 7, "RAISED", []]}, "Malformed", Kind.RAISED),
        ({"verdict": "holds"}, "Malformed", Kind.RAISED),
        ({"outputs": [{"name": "output"}]}, "Malformed", Kind.RAISED),
        ([], "process died", Kind.DIED),
        (b"nonsense", "process died", Kind.DIED),
        (b"[" * 90_000, "process died", Kind.DIED),
        ({**NO_OUTPUTS, "more": "x" * 100_000}, "process died", Kind.DIED),
    ],
)
def test_what_is_no_answer_is_an_exception_of_the_call(monkeypatch, said, name, kind):
    monkeypatch.setattr(remote, "MOST_MESSAGE", 100_000)
    item, _ = implementation(said)
    with pytest.raises(RemoteError) as caught:
        item(INPUTS, None)
    assert (caught.value.name, caught.value.kind) == (name, kind)


def test_a_process_that_says_more_than_its_answer_is_ended():
    item, nursery = implementation(NO_OUTPUTS, NO_OUTPUTS)
    with pytest.raises(RemoteError, match="after its answer, the process ended") as caught:
        item(INPUTS, None)
    assert caught.value.kind is Kind.DIED
    assert nursery.asked == ["new", "end"]


@pytest.mark.few(1)
@pytest.mark.parametrize("gone", [True, False], ids=["is gone", "hangs"])
def test_after_a_process_that_does_not_answer_another_one_is_begun(gone):
    item, nursery = implementation()
    nursery.call = 0.1
    if gone:
        nursery.lines[0].close()
    with pytest.raises(RemoteError) as caught:
        item(INPUTS, None)
    assert caught.value.kind is (Kind.DIED if gone else Kind.TIMED_OUT)
    assert nursery.asked == ["new", "end"]
    nursery.said = ({}, NO_OUTPUTS)
    assert item(INPUTS, None) == {}
    assert nursery.asked == ["new", "end", "new"]


def test_a_copy_of_the_judge_has_a_candidate_of_its_own(monkeypatch):
    item, nursery = implementation()
    nursery.said = ({}, NO_OUTPUTS)
    monkeypatch.setattr(remote.os, "getpid", lambda: 1)
    assert item(INPUTS, None) == {}
    assert nursery.asked == ["new", "new"]


def test_each_object_of_a_stateful_implementation_has_a_number_of_its_own():
    item, nursery = implementation(stateful=True)

    def session(call):
        nursery.lines[0].send_bytes(json.dumps(NO_OUTPUTS).encode())
        call(INPUTS, None)
        return json.loads(nursery.lines[0].recv_bytes())["session"]

    for _ in ("inputs", "outputs", "stack"):
        os.close(recv_handle(nursery.lines[0]))
    first, second = item.factory(), item.factory()
    assert session(first) == session(first) != session(second)


CANDIDATE = """
import os, signal
import npudiff

@npudiff.implementation("swiglu", name="profile")
def profile(inputs, target):
    raise ValueError(target.cann)

@npudiff.implementation("swiglu", name="group")
def group(inputs, target):
    os.killpg(0, signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A nursery, and the implementations of a candidate that it has forked."""
    path = tmp_path_factory.mktemp("candidate") / "mine.py"
    path.write_text(CANDIDATE)
    nursery = Nursery(load_target("sim", "pessimistic"), 60.0, 60.0)
    yield nursery, {item.name: item for item in untrusted_implementations(nursery, str(path))}
    nursery.close()


@pytest.mark.slow
def test_a_candidate_runs_under_the_profile_of_the_judge(real):
    with pytest.raises(RemoteError, match=r"^ValueError: pessimistic$"):
        real[1]["profile"](INPUTS, None)


def test_a_candidate_that_ends_its_group_ends_itself(real):
    with pytest.raises(RemoteError, match="the process died: SIGTERM"):
        real[1]["group"](INPUTS, None)
    with pytest.raises(RemoteError, match=r"^ValueError: pessimistic$"):  # the nursery lives
        real[1]["profile"](INPUTS, None)


def test_no_other_process_may_look_into_the_memory_of_a_judge(real):
    get_dumpable = 3  # of <sys/prctl.h>
    assert ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0) == 0


def test_a_copy_of_the_judge_does_not_end_the_nursery(real, monkeypatch):
    nursery, items = real
    with monkeypatch.context() as copy:
        copy.setattr(remote.os, "getpid", lambda: 1)
        nursery.close()
    with pytest.raises(RemoteError, match=r"^ValueError: pessimistic$"):
        items["profile"](INPUTS, None)
