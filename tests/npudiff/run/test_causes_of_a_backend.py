"""Several ways of one backend: what they make of each other's cases, what a failure depends on, and what it hides."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone

import pytest

from npudiff.errors import ExitCode

WAYS = '''
import npudiff
from npudiff.device.ascend.swa_mask import window_mask

OPTIONS = {"convention": ("inclusive", "exclusive")}

def mask(inputs, more=0):
    return window_mask(inputs.kv_lengths, inputs.capacity, None if inputs.window is None else inputs.window + more)

@npudiff.implementation("swa_mask", on_device=True, options=OPTIONS)
def eager(inputs, target):
    """Right under one convention."""
    return mask(inputs, inputs.options["convention"] == "exclusive")

@npudiff.implementation("swa_mask", on_device=True, options=OPTIONS)
def graph(inputs, target):
    """Right under the other."""
    return mask(inputs, inputs.options["convention"] == "inclusive")

@npudiff.implementation("swa_mask", on_device=True, native=True)
def plain(inputs, target):
    """Right."""
    return mask(inputs)
'''
EAGER = 'return mask(inputs, inputs.options["convention"] == "exclusive")'
GRAPH = 'return mask(inputs, inputs.options["convention"] == "inclusive")'


@pytest.fixture
def ways(small_backend, cli, tmp_path):
    """Run a check of the ways, with other lines in it; return its output, and its findings."""

    def run(*arguments, examples="30", code=ExitCode.FINDINGS, **lines):
        text = WAYS
        for name, other in lines.items():
            line = {"eager": EAGER, "graph": GRAPH}[name]
            assert line in text
            text = text.replace(line, other)
        (small_backend / "swa_mask.py").write_text(text)
        given = ("--backend", "small", "--seed", "1", "--workers", "1", "--examples", examples)
        isolation = [] if "--isolate" in arguments else ["--no-isolate"]
        result = cli("check", "swa_mask", *given, *isolation, *arguments)
        assert result.code == code, result.out + result.err
        folders = (tmp_path / ".npudiff" / "findings").glob("*/finding.json")
        return result.out, [json.loads(path.read_text()) for path in folders]

    return run


def of(findings, name, prop="equivalence"):
    return [one for one in findings if (one["implementation"], one["property_name"]) == (name, prop)]


def test_a_finding_says_which_values_it_needs_and_what_the_others_do(ways):
    out, findings = ways()
    (eager,), (graph,) = of(findings, "eager"), of(findings, "graph")
    assert eager["detail"]["others"] == {"graph": "holds", "plain": "holds"}
    assert [one.partition("=")[0] for one in eager["detail"]["region"]] == ["window", "convention"]
    assert "convention=exclusive" in eager["detail"]["region"]
    assert "convention=inclusive" in graph["detail"]["region"]
    assert "contradicts the documentation, as the reference has it; its native path plain, which holds here; " in out
    assert "itself: graph holds here" in out
    assert "convention=exclusive" in out.partition("fails where")[2].splitlines()[0]


@pytest.mark.slow
def test_ways_that_differ_are_found_without_a_contract_as_well(ways):
    _, findings = ways(examples="100")
    assert of(findings, "eager", "ways_of_the_backend_agree")
    assert of(findings, "plain", "ways_of_the_backend_agree")
    assert not of(findings, "plain")


@pytest.mark.slow
def test_a_defect_that_another_hides_is_found_outside_of_its_region(ways):
    columns = f"if inputs.kv_lengths.dim() == 2:\n        return ~mask(inputs)\n    {EAGER}"
    out, findings = ways(eager=columns)
    regions = [set(one["detail"]["region"]) for one in of(findings, "eager")]
    assert len(regions) == 2
    assert any("column=true" in one for one in regions)
    assert any("convention=exclusive" in one for one in regions)
    assert "findings of 3 causes" in out.splitlines()[-1]
    assert out.count("\nFINDING swa_mask.") == 3


@pytest.mark.slow
def test_one_cause_is_enough_for_who_asks_for_one(ways):
    _, findings = ways("--causes", "1")
    (eager,) = of(findings, "eager")
    assert (eager["detail"]["others"], eager["detail"]["region"]) == ({}, [])


@pytest.mark.slow
def test_two_that_are_wrong_in_the_same_way_are_one_finding(ways):
    out, findings = ways(graph=EAGER)
    assert of(findings, "eager")[0]["detail"]["others"]["graph"] == "fails in the same way"
    assert out.count("\nFINDING swa_mask.") == 1
    assert "also graph · equivalence: wrong value" in out


@pytest.mark.parametrize(("texts", "findings"), [(("no kernel", "no kernel"), 1), (("no kernel", "nothing"), 2)])
def test_one_exception_of_two_ways_is_one_finding_and_another_text_is_another(ways, texts, findings):
    eager, graph = (f'raise ValueError(f"{said} for {{inputs.capacity}}")' for said in texts)
    out, _ = ways(eager=eager, graph=graph)
    assert out.count("\nFINDING swa_mask.") == findings


@pytest.mark.slow
def test_an_exception_is_not_hidden_behind_a_wrong_value_of_equivalence(ways):
    """A relation that raises tells of something that the wrong value does not say."""
    raises = "if len(inputs.kv_lengths) > 2: raise KeyError('kept')\n    return mask(inputs, 1)"
    out, _ = ways("--causes", "1", eager=raises)
    assert "KeyError: 'kept'" in out


@pytest.mark.slow
def test_isolated_and_in_one_process_they_say_the_same(ways, tmp_path):
    _, here = ways()
    for path in (tmp_path / ".npudiff" / "findings").glob("*/*"):
        path.unlink()
    _, apart = ways("--isolate")
    kept = [
        {(one["implementation"], one["property_name"]): (one["detail"]["others"], one["detail"]["region"])
         for one in found}
        for found in (here, apart)
    ]  # fmt: skip
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_known_defect_of_one_way_is_not_held_against_another(small_backend, cli, tmp_path):
    """Where the region names an option that another lacks, that one is compared at the usual value."""
    (small_backend / "swa_mask.py").write_text(WAYS)
    expires = datetime.now(timezone.utc).date() + timedelta(days=9)
    regions = {"eager": "exclusive", "graph": "inclusive"}
    (tmp_path / "known.toml").write_text(
        "".join(
            f'[[issue]]\ncomponent = "swa_mask"\nimplementation = "{name}"\nlink = "https://example.org/7"\n'
            f'where = ["window=1..2147483647", "convention={value}"]\nexpires = {expires}\n'
            for name, value in regions.items()
        )
    )
    arguments = ("--backend", "small", "--known", "known.toml", "--rotating", "off", "--workers", "1", "--no-isolate")
    result = cli("gate", "swa_mask", *arguments, "--examples", "60")
    assert result.code == ExitCode.CLEAN, result.out
