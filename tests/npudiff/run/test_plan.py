from __future__ import annotations

import time
from dataclasses import replace

import pytest

from npudiff.errors import UsageError
from npudiff.judge.graphs import REPLAYS_AS_EAGER
from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE
from npudiff.model.constraints import Constraints
from npudiff.model.job import Isolation
from npudiff.run.discovery import component_names, load_components
from npudiff.run.plan import SMALLER, Request, Shared, make_plan, may_end_its_process

MASK = {"components": ("swa_mask",), "target": "sim"}


def plan(**request):
    return make_plan(Request(**{**MASK, **request}))


def names(jobs):
    return [job.name for job in jobs]


def test_every_property_of_every_implementation_is_a_job_and_every_mutant_is_one():
    made = plan()
    own = ("order_does_not_matter", "capacity_does_not_matter", "wide_window_equals_none")
    relations = ("equivalence", *own, "earlier_calls_change_nothing", "stays_within_its_memory", "replays_as_eager")
    assert names(made.jobs) == [f"swa_mask.{item}.{prop}" for item in ("eager", "graph_buffer") for prop in relations]
    in_graphs = [job.subject.implementation.name for job in made.mutants if job.prop is not EQUIVALENCE]
    assert in_graphs == ["lengths_of_the_capture"]
    assert len(made.mutants) == 6


def test_all_components_are_planned_by_default():
    made = make_plan(Request(target="sim"))
    assert {job.subject.component.name for job in made.jobs} == set(component_names())
    assert len({job.name for job in (*made.jobs, *made.mutants)}) == len(made.jobs) + len(made.mutants)


def test_a_mutant_that_is_named_is_an_ordinary_implementation():
    made = plan(implementations=("mask_minus_one",))
    assert len(made.jobs) == 6
    assert made.mutants == ()


def test_a_mutant_that_keeps_something_is_looked_for_where_calls_follow_each_other():
    made = make_plan(Request(("rms_norm",), target="sim"))
    kept = {job.subject.implementation.name: job for job in made.mutants if job.subject.implementation.factory}
    captured = kept.pop("copy_of_the_capture")  # that is in a graph
    assert captured.prop is REPLAYS_AS_EAGER
    (job,) = kept.values()
    assert job.prop is CALL_INDEPENDENCE
    assert made.budget(job).examples == 5  # no more than any implementation gets


def test_a_mutant_that_stands_for_all_is_made_smaller_in_a_few_tries():
    sample = plan(mutants=1)
    assert [sample.budget(job).smaller for job in sample.mutants] == [SMALLER]
    assert {sample.budget(job).smaller for job in sample.jobs} == {None}
    whole = plan()
    assert {whole.budget(job).smaller for job in whole.mutants} == {None}


def test_a_component_with_history_has_no_other_calls():
    made = make_plan(Request(("hybrid_pools",), target="sim"))
    assert all(job.prop is EQUIVALENCE for job in (*made.jobs, *made.mutants))


def test_where_narrows_the_cases_of_every_job():
    made = plan(where=("window=5", "batch=1..2"))
    (box,) = made.jobs[0].constraints.boxes
    assert box == {"window": (5,), "batch": range(1, 3)}


def test_a_model_profile_narrows_the_cases_and_goes_with_where():
    (box,) = plan(model="step-3.5-flash", where=("batch=2",)).jobs[0].constraints.boxes
    assert box == {"batch": (2,), "window": (None, 512)}
    (box,) = plan(model="step-3.5-flash", where=("window=none",)).jobs[0].constraints.boxes
    assert box == {"window": (None,)}


def test_an_implementation_that_supports_nothing_of_it_is_left_out():
    made = make_plan(Request(("sliding_attention",), target="sim", where=("window=5",)))
    assert "fia_v1_extend_tnd" not in {job.subject.implementation.name for job in made.jobs}
    assert "fia_extend_tnd" in {job.subject.implementation.name for job in made.jobs}


def test_a_component_that_a_model_has_nothing_for_is_not_run():
    # qwen3-30b-a3b has no window, which a mask is about.
    made = make_plan(Request(("sliding_attention", "swa_mask"), target="sim", model="qwen3-30b-a3b"))
    assert {job.subject.component.name for job in made.jobs} == {"sliding_attention"}
    (sizes,) = made.model_sizes["sliding_attention"]
    assert "kv_heads {4}; group {8}; window {none}" in sizes
    assert made.without_sizes == {"swa_mask": "the model has none of it"}
    with pytest.raises(UsageError, match="swa_mask: qwen3-30b-a3b: the model has none of it"):
        make_plan(Request(("swa_mask",), target="sim", model="qwen3-30b-a3b"))


def test_a_model_profile_gives_each_component_its_own_sizes():
    made = make_plan(Request(("rms_norm", "rotary"), target="sim", model="deepseek-v3"))
    axes = {job.subject.component.name: set().union(*job.constraints.boxes) for job in made.jobs}
    assert "dims" not in axes["rms_norm"]
    assert "hidden_size" not in axes["rotary"]


def test_a_component_without_an_axis_that_is_named_has_nothing_to_run():
    made = make_plan(Request(target="sim", where=("page_size=16",)))
    assert {job.subject.component.name for job in (*made.jobs, *made.mutants)} == {
        component.name for component in load_components(()) if "page_size" in component.axes
    }


def test_a_value_that_only_some_components_know_chooses_those():
    made = make_plan(Request(target="sim", where=("dtype=int8",)))
    assert {job.subject.component.name for job in made.jobs} == {"cache_gather", "format_cast", "paged_cache"}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"components": ("nope",)}, "unknown component 'nope'; known: "),
        ({"implementations": ("nope",)}, "unknown implementation 'nope'; known: "),
        ({"target": "nope"}, "unknown target 'nope'; known: npu, sim"),
        ({"cann": "nope"}, "unknown CANN profile 'nope'; known: 8.5, 9.0, 9.1, pessimistic"),
        (
            {"model": "nope"},
            "unknown model 'nope'; known: deepseek-v3, gpt-oss-120b, mimo-v2-flash, qwen3-30b-a3b, step-3.5-flash",
        ),
        ({"hypothesis_profile": "nope"}, "unknown hypothesis profile 'nope'; known: ci, dev, nightly"),
        ({"where": ("nope=1",)}, "--where: unknown axis 'nope'; known: batch, capacity, "),
        ({"where": ("window=3", "nope=1")}, "--where: unknown axis 'nope'; known: batch, capacity, "),
        ({"where": ("window=0",)}, "--where: window is one of 1..2147483647 or none, got 0"),
        (
            {"model": "gpt-oss-120b", "where": ("window=5",)},
            "no implementation supports a case that --where and --model ",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_with_what_was_given(request_, expected):
    with pytest.raises(UsageError) as caught:
        plan(**request_)
    assert str(caught.value).startswith(expected)


def test_each_component_takes_those_of_several_values_that_it_has():
    made = make_plan(Request(("rms_norm", "paged_cache"), target="sim", where=("dtype=bfloat16,int8",)))
    drawn = {job.subject.component.name: job.constraints.boxes[0]["dtype"] for job in made.jobs}
    assert set(drawn) == {"rms_norm", "paged_cache"}
    assert drawn["rms_norm"] == ("bfloat16",)


def test_a_value_that_no_component_has_beside_the_others_is_refused():
    with pytest.raises(UsageError, match="dtype is one of"):
        make_plan(Request(("rms_norm", "paged_cache"), target="sim", where=("dtype=bfloat16,int7",)))


def test_axes_that_no_component_has_together_are_refused():
    with pytest.raises(UsageError, match=r"^--where: no component has all of these axes: window, slots_dtype$"):
        make_plan(Request(target="sim", where=("window=3", "slots_dtype=int32")))


def test_relations_get_their_share_of_the_examples():
    made = plan(examples=40)
    equivalence, order, *_ = made.jobs
    assert made.budget(equivalence).examples == 40
    assert made.budget(order).examples == 4
    assert plan(examples=1).budget(order).examples == 1


def test_a_component_whose_cases_cost_much_gets_fewer_except_for_mutants():
    made = make_plan(Request(("mla_preprocess",), target="sim", examples=200))
    assert made.budget(made.jobs[0]).examples == 8
    assert made.budget(made.mutants[0]).examples == 200


def test_all_that_is_built_in_gets_a_part_of_the_usual_cases_on_a_simulator():
    whole = make_plan(Request(target="sim", mutants=1))
    equivalence = next(job for job in whole.jobs if job.subject.component.name == "swa_mask")
    assert whole.usual_examples == 20
    assert whole.budget(equivalence).examples == 20
    assert {whole.budget(job).examples for job in whole.mutants if job.prop is EQUIVALENCE} == {100, 35}  # of a history
    assert replace(whole, target=replace(whole.target, device="npu")).usual_examples == 100
    assert make_plan(Request(target="sim", mutants=1, hypothesis_profile="ci")).usual_examples == 100
    assert make_plan(Request(target="sim", mutants=1, examples=70)).budget(equivalence).examples == 70
    assert make_plan(Request(target="sim", mutants=1, at_first=20)).budget(equivalence).examples == 20


def test_examples_are_those_of_the_hypothesis_profile_unless_given():
    assert plan().budget(plan().jobs[0]).examples == 100
    nightly = plan(hypothesis_profile="nightly")
    assert nightly.budget(nightly.jobs[0]).examples == 2000


def test_time_is_shared_among_all_jobs_so_that_it_adds_up():
    made = plan(seconds=60.0)
    budgets = [made.budget(job) for job in (*made.jobs, *made.mutants)]
    assert sum(budget.seconds for budget in budgets) == pytest.approx(60.0 * made.workers)
    assert {budget.examples for budget in budgets} == {None}
    assert budgets[0].seconds == pytest.approx(budgets[1].seconds / 0.1)


def test_only_the_ci_profile_is_deterministic_and_the_seed_is_passed_on():
    made = plan(hypothesis_profile="ci", seed=5)
    assert made.budget(made.jobs[0]).deterministic
    assert made.budget(made.jobs[0]).seed == 5
    assert not plan().budget(plan().jobs[0]).deterministic


def test_mutants_are_never_remembered(tmp_path):
    made = plan(example_database=tmp_path)
    assert made.budget(made.jobs[0]).example_database == tmp_path
    assert made.budget(made.mutants[0]).example_database is None


def test_jobs_keep_the_constraints_of_their_implementation(kernel):
    path = kernel("right", "limited.py")
    path.write_text(path.read_text().replace('name="mine"', 'name="mine", supports={"batch": range(1, 9)}'))
    (job, *_) = plan(implementations=(str(path),), where=("batch=4..20",)).jobs
    assert job.constraints == Constraints(({"batch": range(4, 9)},))


def test_isolation_is_refused_where_it_cannot_be_had_and_not_used_where_nobody_asked(monkeypatch):
    assert plan(isolate=True).isolation is not None
    monkeypatch.setattr("npudiff.run.plan.can_isolate", lambda: False)
    with pytest.raises(UsageError, match=r"^--isolate needs Linux$"):
        plan(isolate=True)
    monkeypatch.setattr("npudiff.run.plan.on_this_host", lambda target: False)
    assert plan().isolation is None
    monkeypatch.setattr("npudiff.run.plan.can_isolate", lambda: True)
    assert plan().isolation is not None


def test_what_is_not_built_in_is_judged_where_it_may_die(kernel):
    path = kernel("right")
    named = plan(implementations=(str(path), "eager"))
    assert all(named.budget(job).isolation is not None for job in named.jobs)
    assert plan(implementations=("eager",)).isolation is None
    assert plan(implementations=(str(path),), isolate=False).isolation is None
    (theirs, *_) = named.jobs
    without = plan(implementations=("eager",))
    assert without.budget(theirs).isolation is not None  # a job that a test made


def test_the_times_of_a_request_are_those_of_its_isolation(tmp_path):
    made = plan(isolate=True, journal=tmp_path, timeout=3.0, warm_up=70.0)
    assert made.isolation == Isolation(tmp_path, warm_up=70.0, run=3.0)


@pytest.mark.parametrize(
    ("built_in", "device", "on_host", "may"),
    [
        (True, "cpu", False, False),
        (True, "npu:0", True, False),
        (True, "npu:0", False, True),
        (False, "cpu", False, True),
        (False, "npu:0", False, True),
    ],
)
def test_what_is_not_built_in_or_not_on_this_host_may_end_its_process(kernel, built_in, device, on_host, may):
    name = "eager" if built_in else str(kernel("right"))
    (job, *_) = plan(implementations=(name,)).jobs
    target = replace(job.subject.target, device=device, on_host=on_host)
    assert may_end_its_process(replace(job.subject, target=target)) is may


@pytest.mark.parametrize(
    ("request_", "judges"),
    [
        ({}, True),
        ({"examples": 100}, True),
        ({"examples": 99}, False),
        ({"examples": 10, "mutants": 2}, True),
        ({"seconds": 0.0}, False),
        ({"where": ("batch=2",)}, False),
        ({"model": "step-3.5-flash"}, False),
        ({"model": "step-3.5-flash", "mutants": 2}, False),
    ],
)
def test_a_mutant_that_is_not_found_fails_a_run_that_is_neither_narrowed_nor_shortened(request_, judges):
    assert plan(**request_).judges_mutants is judges


def test_a_few_mutants_stand_for_all_and_get_the_cases_within_which_they_have_to_be_found():
    made = plan(mutants=2, examples=10)
    assert len(made.mutants) == 2
    assert [made.budget(job).examples for job in (made.jobs[0], *made.mutants)] == [10, 100, 100]
    assert plan(mutants=2, examples=300).budget(made.mutants[0]).examples == 300
    assert plan(mutants=0).mutants == ()


def test_a_component_gets_its_mutants_whatever_another_one_has():
    made = make_plan(Request(("swa_mask", "rms_norm"), target="sim", mutants=1))
    assert [job.subject.component.name for job in made.mutants] == ["rms_norm", "swa_mask"]


def test_workers_are_as_many_as_were_asked_for():
    assert plan(workers=7).workers == 7
    one, seven = (plan(workers=count, seconds=60.0) for count in (1, 7))
    assert seven.budget(seven.jobs[0]).seconds == pytest.approx(7 * one.budget(one.jobs[0]).seconds)


def test_who_names_an_implementation_gets_all_its_cases():
    made = make_plan(Request(("mla_preprocess",), target="sim", examples=200))
    name = made.jobs[0].subject.implementation.name
    named = make_plan(Request(("mla_preprocess",), (name,), target="sim", examples=200))
    assert [one.budget(one.jobs[0]).examples for one in (made, named)] == [8, 200]


def test_a_stateful_implementation_is_called_again_more_often():
    made = make_plan(Request(implementations=("replay_before_its_rows",), target="sim", examples=100))
    (job,) = [job for job in made.jobs if job.prop is CALL_INDEPENDENCE]
    assert made.budget(job).examples == 25


def test_a_component_with_history_has_fewer_runs_than_others_have_cases():
    made = make_plan(Request(("hybrid_pools",), target="sim", examples=100))
    assert made.budget(made.mutants[0]).examples == 35


def test_cases_that_others_have_shared_come_first_in_their_job(tmp_path):
    made = plan()
    shared = replace(made, shared=Shared({made.jobs[0].name: ("{}",)}, tmp_path))
    assert [shared.budget(job).explicit_cases for job in made.jobs[:2]] == [("{}",), ()]
    assert {shared.budget(job).shared_database for job in (*made.jobs, *made.mutants)} == {tmp_path}


def test_a_relation_that_has_no_case_within_what_is_asked_for_is_no_job():
    assert "swa_mask.eager.order_does_not_matter" in names(plan(where=("batch=2",)).jobs)
    assert "swa_mask.eager.order_does_not_matter" not in names(plan(where=("batch=1",)).jobs)


def test_the_tasks_of_a_plan_are_its_jobs_with_what_keeps_findings_and_its_mutants_without():
    made = plan(seed=1)
    tasks = made.tasks(keep := lambda outcome: [])
    assert [task[0] for task in tasks] == [*made.jobs, *made.mutants]
    assert [task[2] for task in tasks] == [keep] * len(made.jobs) + [None] * len(made.mutants)


def test_the_budgets_of_all_jobs_take_no_longer_than_the_plan():
    make_plan(Request(target="sim"))  # what it imports is here then
    began = time.process_time()
    made = make_plan(Request(target="sim"))
    planned = time.process_time()
    tasks = made.tasks(lambda *_: ())
    assert len(tasks) == len(made.jobs) + len(made.mutants)
    assert time.process_time() - planned < 2 * (planned - began)
