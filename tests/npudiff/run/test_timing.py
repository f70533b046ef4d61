"""Times beside what is built in: the same cases, in turns, and only of what holds."""

from __future__ import annotations

import time
from dataclasses import replace

import jsonschema
import pytest

import npudiff
from npudiff.device import targets
from npudiff.device.ascend import int4_pack
from npudiff.run.plan import Request, make_plan
from npudiff.run.timing import TIMED, TimedCase, built_in_beside, ratio_of, timed_beside, timing_line


def right(inputs, target):
    return int4_pack.shifted(int4_pack.signed(inputs), range(8))


def slow(inputs, target):
    time.sleep(0.02)
    return right(inputs, target)


def wrong(inputs, target):
    return right(inputs, target) * 2


def dies(inputs, target):
    raise MemoryError


def test_the_ratio_is_a_geometric_mean():
    cases = [TimedCase("a", 2.0, "b", 1.0), TimedCase("a", 2.0, "b", 4.0), TimedCase("a", 3.0, "b", 1.0)]
    assert ratio_of(cases) == pytest.approx(3 ** (1 / 3))
    assert ratio_of([]) is None


def test_a_line_says_how_far_ratios_are_apart_and_whose_seconds_they_are():
    cases = [TimedCase("a", 2.0, "b", 1.0), TimedCase("c", 2.0, "b", 4.0)]
    target = targets.sim(None)
    line = "x.y takes 1.00 times as long as b, on 2 cases (0.50 to 2.00; most on a)"
    assert timing_line(("x", "y"), cases, replace(target, name="npu")) == line
    assert timing_line(("x", "y"), cases, target) == f"{line}; seconds of this machine's processor, and not of a card"
    assert "(" not in timing_line(("x", "y"), cases[:1], target)
    assert timing_line(("x", "y"), [], target) == "x.y was not timed"


def test_what_is_timed_beside_is_right_and_for_a_device_first():
    names = [item.name for item in built_in_beside("rms_norm")]
    assert "npu_rms_norm" in names
    assert "residual_dropped" not in names
    flags = [item.on_device for item in built_in_beside("sliding_attention")]
    assert flags == sorted(flags, reverse=True)


def test_the_largest_cases_are_timed_and_no_other_after_the_time():
    plan = make_plan(Request(components=("rms_norm",), implementations=("native_rms_norm",), target="sim"))
    job, others = plan.jobs[0], built_in_beside("rms_norm")
    timed = timed_beside(job, others, seed=1, until=time.monotonic() + 60)
    assert len(timed) == TIMED
    assert all(one.seconds > 0 and one.beside_seconds > 0 for one in timed)
    assert [one.case for one in timed_beside(job, others, seed=1, until=time.monotonic() + 60)] == [
        one.case for one in timed
    ]
    assert timed_beside(job, others, seed=1, until=0.0) == []


@pytest.mark.slow
def test_a_check_times_what_holds(tmp_path):
    result = npudiff.check([slow, wrong], "int4_pack", examples=3, timed=True, output=tmp_path)
    timing = {one["implementation"]: one["timing"] for one in result.document["implementations"]}
    assert timing["wrong"] is None
    assert timing["slow"]["ratio"] > 2
    assert all(one["seconds"] >= 0.02 for one in timing["slow"]["cases"])
    assert result.time_ratio == timing["slow"]["ratio"]
    jsonschema.validate(result.document, npudiff.schema())
    assert npudiff.check(right, "int4_pack", examples=1, output=tmp_path).time_ratio is None


@pytest.mark.slow
def test_the_command_line_says_it(cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import npudiff, time\nfrom npudiff.device.ascend import int4_pack\n"
        "@npudiff.implementation('int4_pack')\ndef mine(inputs, target):\n"
        "    time.sleep(0.02)\n    return int4_pack.shifted(int4_pack.signed(inputs), range(8))\n"
    )
    result = cli("check", "int4_pack", "--impl", "mine.py", "--target", "sim", "--examples", "2", "--timed")
    assert "int4_pack.mine takes " in result.out
    assert " times as long as npu_convert_weight_to_int4pack, on 5 cases" in result.out
