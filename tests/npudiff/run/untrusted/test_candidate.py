"""A candidate's own process: what it describes, calls and answers, whatever its file does."""

from __future__ import annotations

import contextlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import pytest
import torch

from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation, Target
from npudiff.reference.swiglu import Activation, SwigluInputs
from npudiff.run.untrusted import candidate
from npudiff.run.untrusted.wire import pack, unpack_outputs


@pytest.fixture
def files():
    """Memory for inputs and outputs."""
    files = (os.memfd_create("inputs", os.MFD_CLOEXEC), os.memfd_create("outputs", os.MFD_CLOEXEC))
    yield files
    for file in files:
        os.close(file)


@pytest.fixture
def asked(files):
    """What a candidate of one function answers to calls; returns a function of these."""

    def ask(function, *sessions, stateful=False, synchronize=lambda: None):
        item = Implementation("swiglu", "mine", function, Constraints(), factory=function if stateful else None)
        target = Target("here", "cpu", "0", contextlib.nullcontext, synchronize=synchronize)
        answering, answers = candidate._Candidate([item], target, files), []
        inputs = SwigluInputs(torch.ones(2, 4), Activation.SILU, None, math.inf)
        for session in sessions or (None,):
            question = {"call": 0, "session": session, "outputs": ["output"], "inputs": pack(inputs, files[0])}
            answer = answering.answer(json.loads(json.dumps(question)))
            if "outputs" in answer:
                answer = unpack_outputs(answer["outputs"], files[1])["output"].tolist()
            answers.append(answer)
        return answers

    return ask


def test_an_answer_is_the_outputs_of_the_call(asked):
    assert asked(lambda inputs, target: inputs.states.sum(dim=1)) == [[4.0, 4.0]]


def leaves(inputs, target):
    raise SystemExit(0)


def writes(inputs, target):
    inputs.states[1, 2] += 1
    return inputs.states


@pytest.mark.parametrize(
    ("function", "name", "text"),
    [
        (leaves, "SystemExit", "0"),
        (writes, "InputsChanged", "the implementation wrote into its inputs: states"),
        (lambda inputs, target: {"other": inputs.states}, "InvalidOutput", "an implementation must return outputs"),
    ],
)
def test_what_a_call_raises_is_the_answer(asked, function, name, text):
    ((told, said, kind, frames),) = (one["raised"] for one in asked(function))
    assert ("raise SystemExit(0)" in "".join(frames)) is (function is leaves)
    assert (told, kind) == (name, "RAISED")
    assert said.startswith(text)


def test_an_error_that_comes_when_the_device_is_waited_for_is_one_of_the_call(asked):
    def late():
        raise RuntimeError("507015: aicore exception")

    (answer,) = asked(lambda inputs, target: inputs.states.clone(), synchronize=late)
    assert answer["raised"][:3] == ["RuntimeError", "507015: aicore exception", "FAULT"]


def test_a_session_has_an_object_of_its_own_that_stays(asked):
    def made():
        calls = []

        def call(inputs, target):
            calls.append(inputs)
            return torch.tensor([float(len(calls))])

        return call

    assert asked(made, 1, 1, 2, 1, stateful=True) == [[1.0], [2.0], [1.0], [3.0]]


@pytest.mark.parametrize("copy", ["returns", "raises"])
def test_a_copy_of_the_process_answers_nothing(asked, copy):
    own, copies = os.getpid(), []

    def forks(inputs, target):
        copies.append(os.fork())
        if copies[-1]:
            os.waitid(os.P_PID, copies[-1], os.WEXITED | os.WNOWAIT)  # it is done
            return torch.tensor([1.0])
        if copy == "raises":
            raise ValueError
        return torch.tensor([2.0, 3.0])

    written = candidate.pack_outputs

    def watched(outputs, file):
        if os.getpid() != own:
            os._exit(9)  # it would write over the answer
        return written(outputs, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidate, "pack_outputs", watched)
        try:
            answers = asked(forks)
        finally:
            if os.getpid() != own:
                os._exit(8)  # it would answer
    assert answers == [[1.0]]
    assert os.waitstatus_to_exitcode(os.waitpid(copies[0], 0)[1]) == 1


@pytest.mark.parametrize("text", ["import no_such_module", "raise SystemExit(0)"])
def test_a_file_that_does_not_import_is_refused_and_nothing_is_answered(tmp_path, files, text):
    (tmp_path / "mine.py").write_text(text)
    ours, theirs = Pipe()
    candidate.serve(theirs, Target("here", "cpu", "0", contextlib.nullcontext), str(tmp_path / "mine.py"), files)
    theirs.close()
    assert list(json.loads(ours.recv_bytes())) == ["refused"]
    with pytest.raises(EOFError):
        ours.recv_bytes()


def test_what_there_is_to_be_judged_is_described(tmp_path, files):
    path = tmp_path / "mine.py"
    path.write_text("""
import npudiff

@npudiff.implementation("swiglu", name="plain", supports={"rounding": ("once",)})
def plain(inputs, target):
    \"\"\"What it is.\"\"\"

@npudiff.implementation("swiglu", name="keeps", stateful=True)
def keeps():
    return plain
""")
    ours, theirs = Pipe()
    with ThreadPoolExecutor() as pool:
        here = Target("here", "cpu", "0", contextlib.nullcontext)
        serving = pool.submit(candidate.serve, theirs, here, str(path), files)
        said = json.loads(ours.recv_bytes())
        ours.close()
        assert isinstance(serving.exception(), EOFError)
    plain, keeps = sorted(said["implementations"], key=lambda one: one["stateful"])
    assert plain == {
        "component": "swiglu",
        "name": "plain",
        "summary": "What it is.",
        "supports": [{"rounding": ["once"]}],
        "stateful": False,
        "on_device": False,
        "checks": False,
    }
    assert (keeps["name"], keeps["stateful"]) == ("keeps", True)
