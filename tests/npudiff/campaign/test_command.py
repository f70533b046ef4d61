from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import jsonschema
import pytest

import npudiff
from killed import killed_after
from npudiff.campaign import loop
from npudiff.errors import ExitCode


def rounds(log):
    return [entry for entry in log if entry["kind"] == "round"]


@pytest.mark.slow
def test_a_campaign_says_what_it_found_and_goes_on_where_it_ended(campaign):
    first = campaign("swa_mask")
    assert first.code == ExitCode.FINDINGS
    (name,) = first.found
    assert name.startswith("swa_mask-bad-equivalence-")
    assert "FINDING swa_mask.bad" in first.out
    assert "1 finding ·" in first.out
    assert name in first.page
    assert 'http-equiv="refresh"' not in first.page
    again = campaign("swa_mask")
    assert again.code == ExitCode.FINDINGS
    assert "goes on with" in again.out
    assert again.found == first.found
    assert again.log[: len(first.log)] == first.log
    assert {"kind": "again", "folder": name, "fails": True}.items() <= again.log[len(first.log) + 1].items()
    for job in {entry["job"] for entry in rounds(again.log)}:
        numbers = [entry["number"] for entry in rounds(again.log) if entry["job"] == job and not entry["cut"]]
        assert numbers == list(range(len(numbers)))


@pytest.mark.slow
def test_after_a_finding_the_rest_is_searched(campaign):
    log = campaign("swa_mask", time="4s").log
    (found,) = [entry for entry in rounds(log) if entry["job"] == "swa_mask.bad.equivalence" and entry["number"] == 0]
    assert found["found"][0]["new"]
    later = [entry for entry in rounds(log) if entry["job"] == "swa_mask.bad.equivalence" and entry["number"] in (1, 2)]
    assert later
    assert sum(one["new"] for entry in rounds(log) for one in entry["found"]) == 1


def test_a_name_that_there_is_not_is_told_before_anything_runs(campaign):
    result = campaign("swa_mask", impl="causal_or_window")
    assert result.code == ExitCode.USAGE
    assert not result.log


def test_what_holds_is_clean_and_has_margins_and_a_corpus(campaign):
    result = campaign("swiglu", impl="npu_swiglu")
    assert result.code == ExitCode.CLEAN
    assert "swiglu.npu_swiglu.equivalence · " in result.out
    assert any(entry["new"] for entry in rounds(result.log))
    assert 'class="bar"' in result.page


@pytest.mark.slow
def test_a_corrected_kernel_is_told_and_ends_clean(campaign, tmp_path):
    assert campaign("swa_mask").code == ExitCode.FINDINGS
    text = (tmp_path / "mine.py").read_text().replace("~mask if inputs.window == 3 else mask", "mask")
    (tmp_path / "mine.py").write_text(text)
    os.utime(tmp_path / "mine.py", (1, 1))  # another version, whatever the clock of the file system says
    result = campaign("swa_mask")
    assert result.code == ExitCode.CLEAN
    assert "holds by now: swa_mask-bad-equivalence" in result.out
    assert "Holds by now" in result.page


@pytest.mark.slow
def test_a_finding_that_somebody_removed_is_looked_for_again(campaign, tmp_path):
    (name,) = campaign("swa_mask").found
    (tmp_path / "kept" / "findings" / name).rename(tmp_path / "elsewhere")
    result = campaign("swa_mask", time="4s")
    assert result.code == ExitCode.FINDINGS
    assert len(result.found) == 1


@pytest.mark.slow
def test_a_document_says_what_is_known(campaign, tmp_path):
    result = campaign("swa_mask", "--json", "told.json")
    told = json.loads((tmp_path / "told.json").read_text())
    jsonschema.validate(told, npudiff.schema())
    assert told["exit_code"] == result.code
    assert told["campaign"]["name"] == "7"
    assert [one["folder"] for one in told["campaign"]["causes"]] == result.found
    assert sum(one["cases"] for one in told["campaign"]["jobs"].values()) == sum(e["cases"] for e in rounds(result.log))


@pytest.mark.slow
def test_two_campaigns_do_not_share_a_folder(campaign, tmp_path, monkeypatch):
    from npudiff.campaign import log

    monkeypatch.setattr(log, "LOCKED_SECONDS", 0.1)
    campaign("swa_mask", time="1s")
    path = tmp_path / "kept" / "campaign" / "log.jsonl"

    def hold(connection):
        from npudiff.files.writing import AppendedFile

        held = AppendedFile(path, within=tmp_path / "kept")
        connection.send(True)
        connection.recv()
        held.close()

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(theirs,))
    process.start()
    assert ours.recv()
    result = campaign("swa_mask", time="1s")
    ours.send(True)
    process.join()
    assert result.code == ExitCode.USAGE
    assert "another campaign runs in this folder" in result.err


def test_an_interrupt_ends_with_a_summary(campaign, monkeypatch):
    from npudiff.campaign.loop import Campaign

    taken = []

    def interrupted(self, told):
        taken.append(told)
        if len(taken) == 3:
            raise KeyboardInterrupt
        real(self, told)

    real = Campaign._take
    monkeypatch.setattr(Campaign, "_take", interrupted)
    result = campaign("swa_mask", time="60s")
    assert result.code == ExitCode.INTERRUPTED
    assert "cases in" in result.out
    assert "The campaign has ended" in result.page
    assert len(rounds(result.log)) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it is forked: torch's threads are not used
@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_campaign_loses_nothing_but_the_rounds_in_flight(kills, campaign, tmp_path, read_log, monkeypatch):
    monkeypatch.setattr(loop, "TURN_SECONDS", 0.5)  # so that some are killed between two
    campaign("swa_mask", time="1s")  # everything is imported, and the first rounds are over
    kept = tmp_path / "kept"
    arguments = ["campaign", "swa_mask", "--impl", "mine.py", "--target", "sim", "--no-isolate", "-j", "2"]
    arguments += ["--output", "kept", "--batch", "20"]
    draw = random.Random(5)  # noqa: S311 - any moments will do
    for _ in range(kills):
        before = (kept / "campaign" / "log.jsonl").read_bytes()
        assert killed_after(draw.uniform(0.05, 1.5), arguments, tmp_path) == -signal.SIGKILL
        after = (kept / "campaign" / "log.jsonl").read_bytes()
        assert after.startswith(before[: before.rfind(b"\n") + 1])
    time.sleep(0.2)
    ends = (
        campaign("swa_mask", time=f"{seconds}s").found for seconds in (1, 4, 16, 64)
    )  # the last where much else runs
    (name,) = next(filter(None, ends))  # the same finding, however often it was begun
    log = read_log(kept)
    assert sum(entry["kind"] == "session" for entry in log) > kills / 2
    mine = [entry for entry in rounds(log) if not entry["cut"]]
    for job in {entry["job"] for entry in mine}:
        numbers = [entry["number"] for entry in mine if entry["job"] == job]
        assert len(numbers) == len(set(numbers))  # none was run twice
        begun = {entry["number"] for entry in rounds(log) if entry["job"] == job}  # some are cut
        assert begun == set(range(len(begun)))  # none is missing
    kept.rename(tmp_path / "killed")
    plain = [entry for entry in mine if not entry["number"] % 2]  # the others begin with what is known by then
    good = [entry for entry in plain if ".good." in entry["job"]]
    assert len(good) > 1
    for seconds in (2, 4, 8, 16, 32, 64) if kills < 10 else (60, 120):
        log = campaign("swa_mask", time=f"{seconds}s").log
        whole = {(entry["job"], entry["number"]): entry for entry in rounds(log) if not entry["cut"]}
        both = [(entry, whole[key]) for entry in good if (key := (entry["job"], entry["number"])) in whole]
        if len(both) >= min(len(good), 12):
            break
    assert len(both) >= min(len(good), 12)
    same = ("seed", "cases", "steps", "not_applicable", "worst", "worst_case", "verdict")
    for entry, other in both:
        assert {one: entry[one] for one in same} == {one: other[one] for one in same}
    assert (tmp_path / "killed" / "findings" / name).is_dir()
