"""What drawing assumes of Hypothesis beyond its documentation, one test for each; a new version is tried against these.

Every failure says which assumption broke, and which module of npudiff rests on it.
"""

from __future__ import annotations

from random import Random

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, Verbosity, assume, find, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase, InMemoryExampleDatabase
from hypothesis.errors import Flaky, Unsatisfiable
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from npudiff.draw.chooser import CHOICES, FIRST_CHOICE, SOURCE
from npudiff.files.reading import MOST_BYTES
from npudiff.run.engine import RUNS_AT_ONCE, Stop

GENERATE = settings(
    max_examples=200,
    phases=[Phase.generate],
    database=None,
    deadline=None,
    derandomize=False,
    verbosity=Verbosity.quiet,
    suppress_health_check=list(HealthCheck),
)
MILLION = FIRST_CHOICE + 10**6


def collected(strategy, configured=GENERATE, number=1):
    """What Hypothesis draws from a strategy with a seed."""
    values = []

    def collect(value):
        values.append(value)

    configured(seed(number)(given(strategy)(collect)))()
    return values


def choices_of(count, last):
    return st.composite(lambda draw: [draw_choice(draw, last) for draw in [draw(SOURCE)] for _ in range(count)])()


def draw_choice(source, last):
    return source.randint(FIRST_CHOICE, last) - FIRST_CHOICE


def machine_of(take, **ends):
    """A state machine whose one rule draws from the source of its opening."""

    class Machine(RuleBasedStateMachine):
        @initialize(source=SOURCE)
        def begin(self, source):
            self.source, self.steps = source, []

        @rule()
        def step(self):
            self.steps.append(draw_choice(self.source, MILLION))
            take(self)

        def teardown(self):
            ends.get("teardown", lambda machine: None)(self)

    return Machine


def runs_of(examples, steps=8, number=1, factory=None):
    """The steps of each run of a state machine."""
    seen = []
    machine = machine_of(lambda machine: None, teardown=lambda machine: seen.append(getattr(machine, "steps", [])))

    def made():
        return machine()

    run_state_machine_as_test(
        seed(number)(factory or made), settings=settings(GENERATE, max_examples=examples, stateful_step_count=1 + steps)
    )
    return [steps for steps in seen if steps]  # without those that Hypothesis gave up at their opening


# The source of choices: npudiff/draw/cases.py


def test_the_source_is_a_random_whose_numbers_come_from_hypothesis():
    drawn = collected(choices_of(1, MILLION))
    assert isinstance(find(SOURCE, lambda source: True), Random), "st.randoms no longer gives a random.Random"
    assert drawn == collected(choices_of(1, MILLION)), "with a seed, st.randoms(use_true_random=False) draws otherwise"
    assert len({one for (one,) in drawn}) > 150, "numbers of st.randoms are no longer drawn afresh for each case"


def test_a_randint_is_one_choice_that_shrinks_by_itself_towards_its_first_number():
    smallest = find(choices_of(4, FIRST_CHOICE + 100), lambda drawn: drawn[2] >= 7)
    assert smallest == [0, 0, 7, 0], "randint of st.randoms no longer shrinks to its lower end, each call by itself"


def test_a_randint_with_a_large_offset_and_one_with_another_range_keep_their_alignment():
    """Cases shrink through a change of an earlier choice only if each choice stays the choice that it was."""

    def draw(draw):
        source = draw(SOURCE)
        last = (100, 200)[draw_choice(source, FIRST_CHOICE + 1)]
        return last, draw_choice(source, FIRST_CHOICE + last), draw_choice(source, FIRST_CHOICE + 100)

    smallest = find(st.composite(draw)(), lambda drawn: drawn[1] >= 40 and drawn[2] >= 30)
    assert smallest == (100, 40, 30), "a choice before others no longer shrinks while those after it keep their values"


def test_the_first_case_is_the_simplest_and_the_second_is_not():
    """``npudiff/score/cases.py`` draws two cases and takes the second."""
    first, second = collected(choices_of(4, MILLION), settings(GENERATE, max_examples=2))
    assert first == [0, 0, 0, 0], "the first case of a run is no longer the simplest one"
    assert any(second), "the second case of a run is no longer drawn at random"


def test_large_numbers_are_drawn_flat():
    drawn = [one for case in collected(choices_of(8, FIRST_CHOICE + 7)) for one in case]
    shares = [drawn.count(value) / len(drawn) for value in range(1, 8)]  # a run begins with the first
    assert max(shares) < 0.16, "numbers from FIRST_CHOICE on are no longer drawn alike often"
    assert min(shares) > 0.08, "numbers from FIRST_CHOICE on are no longer drawn alike often"


@pytest.mark.skipif(hypothesis.__version_info__ < (6, 140), reason="literals were collected elsewhere, or not at all")
def test_no_literal_of_a_program_is_mixed_into_choices():
    """Hypothesis draws one number of twenty from the literals of all imported modules outside site-packages.

    So ``FIRST_CHOICE`` is no literal: where npudiff is run from a checkout, its modules are among them.
    """
    try:
        from hypothesis.internal.conjecture.providers import GLOBAL_CONSTANTS, _get_local_constants
    except ImportError:
        pytest.fail("Hypothesis collects literals elsewhere: see whether choices from FIRST_CHOICE on are free of them")
    literals = set(GLOBAL_CONSTANTS.set_for_type("integer")) | set(_get_local_constants().set_for_type("integer"))
    mixed = {literal for literal in literals if FIRST_CHOICE <= literal < FIRST_CHOICE + CHOICES}
    assert literals, "Hypothesis no longer collects literals here: see whether FIRST_CHOICE is still needed"
    assert not mixed, f"cases depend on what is imported: {mixed} are drawn more often than others"


def test_parts_that_come_from_one_source_are_not_copied_over_each_other():
    drawn = collected(choices_of(8, MILLION), settings(GENERATE, max_examples=100))
    copied = sum(len(set(case) - {0}) < sum(one > 0 for one in case) for case in drawn)
    assert copied < 5, f"Hypothesis copies choices of one st.randoms over each other: in {copied} of 100 cases"


# A job: npudiff/run/engine.py, npudiff/draw/presets.py


def fails_above(threshold, seen):
    def test(value):
        seen.append(value)
        if value >= threshold:
            raise ValueError(value)

    return test


def test_the_exception_of_the_test_comes_through_and_the_last_failing_call_is_the_smallest():
    seen = []
    configured = settings(GENERATE, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False)
    with pytest.raises(ValueError, match="17"):
        configured(seed(1)(given(st.integers(0, 1000))(fails_above(17, seen))))()
    assert [value for value in seen if value >= 17][-1] == 17, (
        "Hypothesis no longer ends with the smallest failing case"
    )


@pytest.mark.parametrize("threshold", [300_000, 10**7], ids=["while shrinking", "while drawing"])
def test_a_base_exception_ends_a_run_at_once(threshold):
    calls = []

    def test(value):
        calls.append(value)
        if len(calls) == 20:
            raise Stop
        if value >= threshold:
            raise ValueError

    configured = settings(GENERATE, phases=[Phase.generate, Phase.shrink])
    with pytest.raises(Stop):
        configured(seed(1)(given(st.integers(0, 10**6))(test)))()
    assert len(calls) == 20, "a test that raises a BaseException is called again"


def test_a_seed_before_the_settings_keeps_the_memory_and_one_after_them_takes_it():
    database = InMemoryExampleDatabase()
    configured = settings(GENERATE, database=database)
    for wrapped, kept in (
        (configured(seed(1)(given(st.integers(0, 1000))(fails_above(17, [])))), True),
        (seed(1)(configured(given(st.integers(0, 1000))(fails_above(17, [])))), False),
    ):
        database.data.clear()
        with pytest.raises(ValueError, match=r"\d"):
            wrapped()
        assert bool(database.data) == kept, "whether a seed takes the example database no longer depends on its order"


def test_a_seed_decides_the_draws_and_overrides_derandomize():
    one, again, other = (collected(choices_of(2, MILLION), number=number) for number in (1, 1, 2))
    assert one == again, "the same seed draws other cases"
    assert one != other, "another seed draws the same cases"
    assert collected(choices_of(2, MILLION), settings(GENERATE, derandomize=True)) == one, "derandomize beats a seed"


def test_a_strategy_that_rejects_everything_is_unsatisfiable():
    @st.composite
    def nothing(draw):
        assume(draw(SOURCE) is None)

    with pytest.raises(Unsatisfiable):
        collected(nothing())


def test_a_run_ends_when_all_is_drawn_that_can_be_drawn():
    drawn = collected(choices_of(1, FIRST_CHOICE + 3))
    assert sorted(one for (one,) in drawn) == [0, 1, 2, 3], "a run of few possible cases repeats some, or misses some"


def test_a_run_within_a_run_is_only_a_health_check_that_can_be_switched_off():
    """A job runs Hypothesis, and pytest may run the job in a test of Hypothesis."""

    def outer(value):
        collected(st.integers(), settings(GENERATE, max_examples=1))

    settings(GENERATE, max_examples=2, suppress_health_check=[HealthCheck.nested_given])(given(st.integers())(outer))()


# Memory of what failed: npudiff/findings/shared.py, Budget.example_database_of


def remembering(folder, phases, seen, threshold=17):
    configured = settings(GENERATE, phases=phases, database=DirectoryBasedExampleDatabase(folder))
    return configured(seed(1)(given(st.integers(0, 10**6))(fails_above(threshold, seen))))


def test_a_folder_of_examples_is_plain_files_two_levels_deep_and_is_there_only_after_a_failure(tmp_path):
    folder = tmp_path / "job"
    collected(st.integers(), settings(GENERATE, database=DirectoryBasedExampleDatabase(folder)))
    assert not folder.is_dir() or not any(folder.iterdir()), "a run that holds leaves examples: 'remembered' would lie"
    with pytest.raises(ValueError, match=r"\d"):
        remembering(folder, [Phase.generate], [])()
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    assert files, "a failing case is not remembered"
    assert all(path.parent.parent == folder for path in files), "examples lie otherwise than folder/key/value"
    assert max(path.stat().st_size for path in files) < MOST_BYTES, "examples are larger than those that are shared"


def test_what_is_remembered_is_tried_first_and_forgotten_when_it_holds(tmp_path):
    with pytest.raises(ValueError, match="17"):
        remembering(tmp_path, [Phase.generate, Phase.shrink], [])()
    seen = []
    with pytest.raises(ValueError, match="17"):
        remembering(tmp_path, [Phase.reuse, Phase.generate], seen)()
    assert seen[0] == 17, "the smallest failing case of the last run is no longer tried first"
    for first, assumption in (
        (17, "the key of remembered cases depends on more than the test's source"),
        (0, "a case that holds again is still remembered"),
    ):
        seen = []
        remembering(tmp_path, [Phase.reuse, Phase.generate], seen, threshold=10**7)()
        assert seen[0] == first, assumption


def test_everything_in_the_folder_of_a_key_is_read(tmp_path):
    """This is why ``read_shared`` refuses a folder with links, pipes and large files before Hypothesis sees it."""
    database = DirectoryBasedExampleDatabase(tmp_path / "examples")
    database.save(b"key", b"value")
    (kept,) = (path for path in database.path.rglob("*") if path.is_file() and path.read_bytes() == b"value")
    (tmp_path / "secret").write_bytes(b"secret")
    (kept.parent / "link").symlink_to(tmp_path / "secret")
    assert set(database.fetch(b"key")) == {b"value", b"secret"}, (
        "Hypothesis no longer follows links: shared.py may relax"
    )


# State machines: npudiff/draw/state_machine.py, TraceRun of npudiff/run/engine.py


def test_a_source_that_the_opening_drew_serves_all_rules_of_the_run():
    runs = runs_of(RUNS_AT_ONCE)
    assert all(len(set(steps)) > 5 for steps in runs[1:]), "a source of an initialize rule is dead in later rules"
    assert runs == runs_of(RUNS_AT_ONCE), "with a seed, a state machine draws otherwise"


def test_hypothesis_counts_the_opening_among_the_steps():
    assert {len(steps) for steps in runs_of(RUNS_AT_ONCE, steps=5)} == {5}, (
        "stateful_step_count no longer counts initialize rules: TraceRun adds one for the opening"
    )


def test_a_function_may_stand_for_a_machine_and_carry_the_seed():
    assert runs_of(5) != runs_of(5, number=2), "run_state_machine_as_test no longer takes the seed of its factory"


def test_the_first_nine_runs_are_drawn_afresh():
    runs = runs_of(RUNS_AT_ONCE, steps=20)
    steps = [step for run in runs[1:] for step in run]
    assert RUNS_AT_ONCE - 2 <= len(runs) <= RUNS_AT_ONCE
    assert len(set(steps)) > 0.9 * len(steps), "runs before the tenth are variations of each other: lower RUNS_AT_ONCE"


def test_from_the_tenth_run_on_runs_are_copied():
    runs = runs_of(10 * RUNS_AT_ONCE, steps=20)
    steps = [step for run in runs[1:] for step in run]
    assert len(set(steps)) < 0.8 * len(steps), "Hypothesis no longer copies runs: RUNS_AT_ONCE need not be so small"


def test_a_step_that_raises_ends_in_teardown():
    ended = []

    def take(machine):
        raise ValueError("a step")

    configured = settings(GENERATE, max_examples=RUNS_AT_ONCE)
    with pytest.raises(ValueError, match="a step"):
        run_state_machine_as_test(machine_of(take, teardown=ended.append), settings=configured)
    assert ended, "teardown is not called after a step that raises: TraceListener.end would not be"


@pytest.mark.parametrize(("place", "seen"), [("opening", Flaky), ("step", Stop)])
def test_a_base_exception_ends_the_runs_of_a_machine(place, seen):
    """Raised in an opening it looks like a machine that draws less than before; ``TraceRun`` takes both for an end."""
    runs = []

    def stop(machine):
        if len(runs) == 5:
            raise Stop

    class Machine(machine_of(stop if place == "step" else lambda machine: None)):
        @initialize(source=SOURCE)
        def begin(self, source):
            runs.append(self)
            self.source, self.steps = source, []
            if place == "opening":
                stop(self)

    configured = settings(GENERATE, max_examples=RUNS_AT_ONCE, stateful_step_count=9)
    with pytest.raises(seen):
        run_state_machine_as_test(seed(1)(Machine), settings=configured)
    assert len(runs) == 5, "a state machine that raises a BaseException is run again"
