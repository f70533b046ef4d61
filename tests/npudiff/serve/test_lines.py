"""The judge on standard input and output: verdicts, limits, and what a candidate may try."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from served import PLAIN, RIGHT, WRONG, Judge

HEAD = "import os, sys, time, npudiff, torch\n\n@npudiff.implementation('int4_pack')\ndef candidate(inputs, target):\n"


@pytest.fixture(scope="module")
def judge():
    one = Judge("--workers", "2")
    yield one
    assert one.close()[0] == 0


@pytest.mark.slow
def test_a_right_candidate_is_clean_and_says_what_was_judged(judge):
    said = judge.ask(examples=20)
    assert said["verdict"] == "clean"
    assert said["cases"] > 20
    (item,) = said["implementations"]
    assert (item["verdict"], item["compared"]) == ("holds", ["words"])
    assert all(one["verdict"] in ("holds", "not applicable") for one in item["properties"])
    assert said["text"].startswith("clean: ")


def test_a_wrong_one_is_told_with_all_that_helps_to_mend_it(judge):
    said = judge.ask(WRONG)
    assert said["verdict"] == "findings"
    first = said["findings"][0]
    assert first["case"]["columns"] == 8
    assert {"actual", "expected", "bound"} <= set(first["detail"]["where"])
    assert first["detail"]["alone"] == [1, 1]
    assert first["folder"] is None
    assert "wrong value" in said["text"]
    assert len({one["property"] for one in said["findings"]}) == 1  # the others are not waited for
    thorough = judge.ask(WRONG, thorough=True)
    assert len({one["property"] for one in thorough["findings"]}) > 1


@pytest.mark.slow
def test_seeds_are_fresh_unless_one_is_given(judge):
    first, second = (judge.ask(examples=1)["run"]["seed"] for _ in range(2))
    assert first != second
    assert judge.ask(examples=1, seed=5)["run"]["seed"] == "5"


def test_a_function_need_not_be_decorated(judge):
    said = judge.ask(PLAIN, function="candidate", supports=["columns=8,16"], examples=10)
    assert said["verdict"] == "clean"
    assert judge.ask(PLAIN, function="missing")["verdict"] == "usage error"
    assert "no function in it is decorated" in judge.ask(PLAIN)["problem"]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def f(:", "SyntaxError"),
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("import os\nos._exit(0)", "fails to import"),
        (RIGHT.replace('"int4_pack"', '"int4_pck"'), "int4_pack"),
        (RIGHT.replace("int4_pack", "swa_mask"), "implements swa_mask, not int4_pack"),
    ],
)
def test_what_cannot_be_judged_says_why(judge, source, problem):
    said = judge.ask(source)
    assert said["verdict"] == "usage error"
    assert problem in said["problem"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "verdict", "text"),
    [
        ("    os._exit(0)\n", "process died", "exit code 0"),
        ("    while True: time.sleep(0.01)\n", "time-out", "no answer within 1 s"),
        ("    os.kill(os.getpid(), 11)\n", "process died", "SIGSEGV"),
        ("    return torch.zeros(2**31, dtype=torch.int32)\n", "exception", "memory"),
        ("    import npudiff.properties.int4_pack\n", "exception", "not there for a candidate"),
        ("    from npudiff.reference.int4_pack import int4_pack\n", "exception", "cannot import name"),
        ("    raise ValueError('mine')\n", "exception", "ValueError: mine"),
        ("    return 'text'\n", "exception", "str"),
    ],
)
def test_what_a_candidate_does_to_itself_is_a_finding_and_the_judge_goes_on(judge, body, verdict, text):
    said = judge.ask(HEAD + body, call_seconds=1.0, memory=2**30)
    assert said["verdict"] == "findings"
    assert said["findings"][0]["verdict"] == verdict
    assert text in said["text"]
    if verdict == "time-out":
        assert said["findings"][0]["detail"]["frames"][-1].endswith("in candidate: while True: time.sleep(0.01)")
    assert judge.ask(examples=2)["verdict"] == "clean"


def test_what_fails_only_after_other_cases_says_so(judge):
    counted = "    CALLS.append(1)\n    return words if len(CALLS) < 4 else words + 1"
    kept = RIGHT.replace("    return words", counted).replace(
        "import npudiff, torch", "import npudiff, torch\nCALLS = []"
    )
    said = judge.ask(kept)
    assert said["verdict"] == "findings"
    assert said["findings"][0]["detail"]["alone"] == [0, 1]


@pytest.mark.slow
def test_a_verdict_that_is_not_there_in_time_is_none(judge):
    slow = RIGHT.replace("    words = ", "    import time; time.sleep(0.2)\n    words = ")
    began = time.monotonic()
    said = judge.ask(slow, seconds=1.0)
    assert (said["verdict"], said["problem"]) == ("interrupted", "no verdict within 1 s")
    assert time.monotonic() - began < 6


@pytest.mark.slow
def test_several_are_judged_at_a_time_and_one_can_be_given_up(judge):
    slow = RIGHT.replace("    words = ", "    import time; time.sleep(0.2)\n    words = ")
    numbers = [judge.send(component="int4_pack", source=slow) for _ in range(3)]
    quick = judge.send(component="int4_pack", source=RIGHT, examples=2)
    for number in numbers:
        judge.send(do="cancel", of=number)
    answers = {answer["id"]: answer for answer in (judge.receive() for _ in range(4))}
    assert [answers[number]["problem"] for number in numbers] == ["cancelled"] * 3
    assert answers[quick]["verdict"] == "clean"
    judge.send(do="cancel", of="nobody")
    assert "nothing with the id 'nobody'" in judge.receive()["problem"]


def test_contracts_and_what_the_judge_is(judge):
    judge.send(do="components", names=["int4_pack"])
    (component,) = judge.receive()["components"]
    assert component["outputs"] == ["words"]
    judge.send(do="components", names=["int4_pck"])
    assert "did you mean 'int4_pack'" in judge.receive()["problem"]
    judge.send(do="hello")
    said = judge.receive()
    assert (said["target"]["name"], said["workers"], said["judging"]) == ("sim", 2, 0)


def test_lines_that_are_no_requests_are_refused(judge):
    for line in ("no json", "[1]", '{"id": 7, "do": "chek"}', "[" * 100_000):
        judge.process.stdin.write(line + "\n")
        judge.process.stdin.flush()
        assert judge.receive()["verdict"] == "usage error"


@pytest.mark.slow
def test_the_end_of_the_input_ends_it_after_the_last_answer_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tempfile.tempdir = None
    one = Judge("--workers", "1")
    one.send(component="int4_pack", source=RIGHT, examples=2)
    code, said = one.close()
    assert code == 0, said
    assert "npudiff serve: ready" in said
    assert "a candidate that talks" not in said
    assert list(Path(tmp_path).iterdir()) == []
    tempfile.tempdir = None


@pytest.mark.slow
def test_a_candidate_that_prints_much_is_right_all_the_same(judge):
    talks = RIGHT.replace('print("a candidate that talks")', 'print("much " * 50_000)')
    assert judge.ask(talks, examples=5, call_seconds=2.0)["verdict"] == "clean"


@pytest.mark.slow
def test_time_is_told_beside_correctness(judge):
    slow = RIGHT.replace("    words = ", "    import time; time.sleep(0.02)\n    words = ")
    timing = judge.ask(slow, examples=2, timed=True)["implementations"][0]["timing"]
    assert timing["ratio"] > 2
    assert {one["beside"] for one in timing["cases"]} <= {"npu_convert_weight_to_int4pack", "bytes_viewed_as_words"}
    assert judge.ask(WRONG, timed=True)["implementations"][0]["timing"] is None


@pytest.mark.slow
def test_a_candidate_that_kills_its_parent_is_told_and_the_judge_goes_on(judge):
    said = judge.ask(HEAD + "    os.kill(os.getppid(), 9)\n    time.sleep(5)\n", call_seconds=3.0)
    assert said["verdict"] == "findings"
    for _ in range(3):
        assert judge.ask(examples=2)["verdict"] == "clean"


@pytest.mark.slow
def test_who_is_judged_beside_one_that_kills_its_parent_is_not_accused_of_it(judge):
    slow = RIGHT.replace("    words = ", "    import time; time.sleep(0.1)\n    words = ")
    first = judge.send(component="int4_pack", source=slow, examples=60)
    time.sleep(1.5)
    killer = HEAD + "    os.kill(os.getppid(), 9)\n    time.sleep(5)\n"
    second = judge.send(component="int4_pack", source=killer, call_seconds=3.0)
    said = {one["id"]: one for one in (judge.receive(), judge.receive())}
    assert said[first]["verdict"] == "clean"  # it was judged once more, alone
    assert said[second]["verdict"] == "findings"
    assert judge.ask(examples=2)["verdict"] == "clean"
