"""Forms of calls: what the code says is what is recorded, and the adapters make no other."""

from __future__ import annotations

import json

import pytest
import torch

from npudiff.device import targets
from npudiff.device.contract.calls import Call, kind_of, merge, recorded_calls, watching, write_calls
from npudiff.device.contract.drawing import implementations, run_drawn
from npudiff.device.simulator import install
from npudiff.run.discovery import component_names, load_component

EXAMPLES = 3


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "None"), (torch.ones(1), "Tensor"), (1, "int"), (True, "bool"), (1.0, "float"), ("a", "str"),
        (torch.int8, "dtype"), ([1, 2], "int[]"), ((1,), "int[]"), ([], "[]"), ([torch.ones(1), None], "None+Tensor[]"),
    ],
)  # fmt: skip
def test_kinds_are_in_the_words_of_schemas(value, kind):
    assert kind_of(value) == kind


@pytest.mark.parametrize(
    "text", ["npu_f()", "npu_f.out(Tensor, None|Tensor, int, b=int[], c=None)", "atb::f(a=Tensor)"]
)
def test_a_form_is_written_and_read_back(text):
    assert str(Call.parse(text)) == text


def test_what_is_no_form_is_refused():
    with pytest.raises(ValueError, match="not the form of a call: 'npu_f'"):
        Call.parse("npu_f")


def test_what_the_code_says_is_seen_with_defaults_and_keywords_as_they_stand():
    install()
    made = []
    x = torch.ones(2, 4)
    with watching(made.append):
        torch.ops.npu.npu_rms_norm(x, gamma=torch.ones(4), epsilon=1e-06)  # equal to its default
        torch.ops.npu.npu_rms_norm.default(x, torch.ones(4))
        torch.ops.aten.add(x, x)
    torch.ops.npu.npu_rms_norm(x, torch.ones(4))
    assert [str(call) for call in made] == [
        "npu_rms_norm(Tensor, epsilon=float, gamma=Tensor)",
        "npu_rms_norm(Tensor, Tensor)",
    ]


def test_watching_ends_also_where_the_call_fails():
    before = torch._ops.OpOverloadPacket.__call__
    with pytest.raises(ZeroDivisionError), watching(print):
        raise ZeroDivisionError
    assert torch._ops.OpOverloadPacket.__call__ is before


def test_calls_with_the_same_arguments_are_one_form_and_others_are_not():
    texts = ("f(Tensor, b=None)", "f(Tensor, b=Tensor)", "f(None, b=Tensor)", "f(Tensor)", "f(Tensor, c=int)")
    merged = merge(map(Call.parse, texts))
    assert [str(call) for call in merged.values()] == ["f(None|Tensor, b=None|Tensor)", "f(Tensor)", "f(Tensor, c=int)"]
    assert all(Call.parse(text).is_among(merged) for text in texts)
    for other in ("f(Tensor, b=int)", "f(int)", "f()", "f(Tensor, d=int)", "g(Tensor)"):
        assert not Call.parse(other).is_among(merged)


def test_the_record_is_sorted_and_says_each_form_once(tmp_path):
    path = tmp_path / "calls.json"
    write_calls(map(Call.parse, ("g()", "f(int)", "f(None)")), path)
    assert json.loads(path.read_text())["calls"] == ["f(None|int)", "g()"]
    write_calls(recorded_calls().values(), path)
    assert path.read_text() == (recorded_calls.__defaults__[0]).read_text()


@pytest.mark.few(23)
@pytest.mark.parametrize("name", component_names())
def test_adapters_make_no_call_whose_form_is_not_recorded(name):
    component, recorded = load_component(name), recorded_calls()
    made = []
    for item in implementations(component):
        with watching(made.append):
            outcome = run_drawn(component, item, targets.sim(None), EXAMPLES)
        assert outcome.failure is None
    unknown = sorted({str(call) for call in made if not call.is_among(recorded)})
    assert unknown == [], "record them: python -m npudiff.device.contract calls"
