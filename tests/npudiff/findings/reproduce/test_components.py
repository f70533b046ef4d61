"""Scripts of mutants give the bits of the mutant, and those of what they were made from are right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mutant_pairs import PAIRS
from npudiff.device import ascend, mutants
from npudiff.device.targets import sim
from npudiff.findings.finding import finding_of, read_finding, write_finding
from npudiff.findings.reproduce import reproduction
from npudiff.judge.judge import CALL_INDEPENDENCE, EQUIVALENCE
from npudiff.model.component import Subject
from npudiff.model.job import Job, Outcome
from npudiff.run.discovery import load_components
from npudiff.run.engine import run_case
from npudiff.show.finding import keep_findings
from script_runner import bits

RUNNER = Path(__file__).parents[3] / "support" / "script_runner.py"
COMPONENTS = {component.name: component for component in load_components(())}
MUTANTS = {item.name: item for item in map(vars(mutants).get, mutants.__all__)}
ORIGINALS = {(item.component, item.name): item for item in map(vars(ascend).get, ascend.__all__)}

NAMES = (
    "decode_pre_tokens",  # an argument of the operator
    "decode_mask_forgotten_past_512",  # a profile's quirk
    "decode_nz_pages_as_nd",
    "slots_truncated",  # writes in place
    "strides_from_shapes",  # rows of wider ones
    "quantised_twice",
    "low_nibble_not_masked",  # int4
    "even_column_above",
    "tiles_row_by_row",  # NZ
    "format_without_transdata",
    "split_tail_not_cleared",
)
OTHERS = ("rms_norm", "swiglu", "moe_experts", "quant_matmul", "mla_preprocess", "grouped_matmul")
ALL = (
    *NAMES,
    *(
        next(n for n, one in MUTANTS.items() if one.component == other and not PAIRS[n].rejected and not one.graph)
        for other in OTHERS
    ),
)
OF_CALLS = ("padded_rows_of_a_batch_before", "lengths_of_the_captured_step")


def job_of(item, prop):
    return Job(Subject(COMPONENTS[item.component], item, sim(None)), prop, item.constraints)


def judged(name):
    item = MUTANTS[name]
    return run_case(job_of(item, CALL_INDEPENDENCE if name in OF_CALLS else EQUIVALENCE), PAIRS[name].shows)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Findings of mutants, and the same cases with what they were made from; all run in one fresh process."""
    root = tmp_path_factory.mktemp("scripts")
    wrong, right = {}, {}
    for name in (*ALL, *OF_CALLS):
        outcome = judged(name)
        ((_, wrong[name]),) = keep_findings(outcome, root / "wrong")
        original = ORIGINALS[MUTANTS[name].component, MUTANTS[name].mutant_of]
        correct = replace(outcome, job=job_of(original, outcome.job.prop))
        script = reproduction(correct, finding_of(outcome), outcome.failure)
        assert not script.why_not, name
        right[name] = write_finding(finding_of(outcome), outcome.failure, root / "right", script)
    folders = [str(folder) for folder in (*wrong.values(), *right.values())]
    done = subprocess.run(
        [sys.executable, RUNNER, sim(None).cann, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return {name: (wrong[name], said[str(wrong[name])], said[str(right[name])]) for name in wrong}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ALL, *OF_CALLS])
def test_the_script_gives_the_bits_that_were_wrong(scripts, name):
    folder, wrong, _ = scripts[name]
    assert wrong["raised"] is None
    kept = load_file(folder / "tensors.safetensors")
    expected = {key.removesuffix(".actual"): bits(kept[key]) for key in kept if key.endswith(".actual")}
    expected.pop("format", None)  # a number that Python has put into a tensor
    assert wrong["bits"] == expected != {}
    assert wrong["wrong"], wrong["said"]


@pytest.mark.few(9)
@pytest.mark.parametrize("name", [*ALL, *OF_CALLS])
def test_the_script_of_what_it_was_made_from_is_right(scripts, name):
    _, _, right = scripts[name]
    assert (right["raised"], right["wrong"], bool(right["bits"])) == (None, False, True), right["said"]


def test_the_inside_of_a_simulated_operator_is_not_written_down(scripts):
    text = (scripts["decode_pre_tokens"][0] / "reproduce.py").read_text()
    calls = text.partition("def calls(")[2].partition("\n\n\nOPERATORS")[0]
    assert calls.count("torch.ops.npu.npu_fused_infer_attention_score_v2.default(") == 1
    assert calls.count("torch.ops.") < 15
    assert "pre_tokens=" in calls
    assert "softmax_scale=" in calls


def test_what_is_written_is_read_and_has_checksums(scripts):
    folder = scripts["slots_truncated"][0]
    assert read_finding(folder).detail["script"] == ""
    content = json.loads((folder / "finding.json").read_text())
    assert content["schema_version"] == 1
    assert {len(content["script_sha256"]), len(content["reproduce_sha256"])} == {64}


@pytest.mark.slow
def test_a_rejected_call_is_the_last_one_and_is_rejected_again(tmp_path):
    outcome = judged("extend_value_as_key_dim")
    ((_, folder),) = keep_findings(outcome, tmp_path)
    done = subprocess.run([sys.executable, RUNNER, sim(None).cann, folder], capture_output=True, text=True, check=True)
    (said,) = json.loads(done.stdout).values()
    assert (said["raised"], said["last"]) == ("OperatorRejected", True)
    last = (folder / "reproduce.py").read_text().partition("    run.last()\n")[2].partition("\n\n\nOPERATORS")[0]
    assert last.startswith("    torch.ops.npu.npu_fused_infer_attention_score_v2.default(\n")
    assert last.count("torch.ops.") == 1


def test_a_component_with_history_has_no_script():
    item = next(item for item in MUTANTS.values() if item.component == "hybrid_pools")
    script = reproduction(Outcome(job_of(item, EQUIVALENCE)), None, None)
    assert (script.text, script.why_not) == (
        "", "a component with history is an object that Python keeps, and not calls of operators")  # fmt: skip
