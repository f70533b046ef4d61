"""What is called is what the script calls: the same bits, memory shared as it was, and a sentence for the rest."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass

import pytest
import torch


def bits(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist()


@pytest.fixture
def same(calls_of, here):
    """Write down what a function calls, make the calls again, and compare the bits; returns the script."""

    def run(function, numbers=(1, 200, 300)):
        script = calls_of(function, numbers)
        assert not script.why_not
        expected = function(_inputs(numbers), None)
        expected = expected if isinstance(expected, dict) else {"y": expected}
        seen = here(script).seen
        assert {name: bits(tensor) for name, tensor in seen.items()} == {
            name: bits(tensor) for name, tensor in expected.items()}  # fmt: skip
        return script

    return run


@dataclass
class Inputs:
    x: torch.Tensor
    kind: str = "plain"


def _inputs(numbers):
    return Inputs(torch.tensor(numbers, dtype=torch.float32))


def control_flow(inputs, target):
    total = inputs.x
    for _ in range(int(inputs.x[0].item()) + 1):
        total = total + inputs.x / 2
    return total if total.max().item() > 5 else total * 2


def in_place(inputs, target):
    y = inputs.x.clone()
    y[1:].mul_(2)
    y[:1] += inputs.x[:1]
    return y


def changes_shape_in_place(inputs, target):
    y = (inputs.x * 2).contiguous()
    other = y.view(-1)
    y.unsqueeze_(0).transpose_(0, 1)
    y[0, 0] += 1
    return other - torch.tensor([1.0, 0.0, 0.0])


def lists(inputs, target):
    parts = torch.split(inputs.x, 1)
    return torch.cat([parts[0], *parts[1:]]) + torch.stack(list(parts)).flatten()


def options(inputs, target):
    y = torch.full((3,), float("nan"), dtype=torch.float64).nan_to_num(nan=0.0, posinf=float("inf"))
    y = torch.clamp(y + inputs.x.to(torch.float64, memory_format=torch.preserve_format), min=None, max=float("inf"))
    return torch.empty_like(y).copy_(y).to(torch.float32) * 2


def views(inputs, target):
    wide = torch.arange(12.0).reshape(3, 4)
    return inputs.x * 2 + wide[:, 1] * 0 + wide.t()[2] * 0


BUFFER = torch.zeros(3)


def a_buffer_of_its_own(inputs, target):
    BUFFER.copy_(inputs.x)
    BUFFER.mul_(2)
    return BUFFER


def several_results(inputs, target):
    values, order = torch.sort(inputs.x, descending=True)
    return values[torch.argsort(order)] * 2


def random_numbers(inputs, target):
    noise = torch.rand(3)
    other = torch.empty(3).uniform_(generator=torch.Generator().manual_seed(3))
    return inputs.x * 2 + 0 * noise + 0 * other


@pytest.mark.parametrize(
    "function",
    [
        control_flow,
        in_place,
        changes_shape_in_place,
        lists,
        options,
        views,
        several_results,
        a_buffer_of_its_own,
        random_numbers,
    ],
    ids=lambda one: one.__name__,
)
def test_the_calls_again_give_the_same_bits(same, function):
    same(function)


def test_numbers_that_python_reads_are_constants_and_are_named(same, lines):
    text = lines(same(control_flow))
    assert "# Python read 1.0 from x\n" in text
    assert text.count("aten.div.Tensor") == 2
    assert "_local_scalar_dense" not in text


def test_random_numbers_are_those_that_were_drawn(calls_of, here, lines):
    def function(inputs, target):
        return inputs.x + torch.empty(3).normal_()

    script = calls_of(function)
    assert here(script).seen["y"].tolist() == here(script).seen["y"].tolist()
    assert "normal" not in lines(script)


def test_views_of_one_memory_are_views_of_one_memory(same, here, calls_of, lines):
    whole = torch.arange(20.0)
    row, column = whole.as_strided((3,), (5,), 2), whole.as_strided((3,), (1,), 7)

    def function(inputs, target):
        fresh = row * 1
        row.add_(1)  # element 7 is the first of the column as well
        result = fresh + column + inputs.x
        row.sub_(1)
        return result

    script = same(function)
    assert "run.load('constant', torch.float32, (3,), stride=(5,), offset=2)" in lines(script)
    assert "constant_2 = run.load('constant', torch.float32, (3,), offset=7)" in lines(script)
    assert len(here(script).stored["constant"]) == 80


def test_two_inputs_that_share_their_memory_do_so_in_the_script(toy, calls_of, here, lines):
    @dataclass(frozen=True)
    class Pair:
        x: torch.Tensor
        other: torch.Tensor
        kind: str = "plain"

    def inputs(case):
        whole = torch.tensor(case.numbers * 2, dtype=torch.float32)
        return Pair(whole[: len(case.numbers)], whole[1 : 1 + len(case.numbers)])

    def function(inputs, target):
        return inputs.x + inputs.other

    script = calls_of(function, inputs=inputs)
    assert "x = run.load('x', torch.float32, (3,))" in lines(script)
    assert "other = run.load('x', torch.float32, (3,), offset=1)" in lines(script)
    assert here(script).seen["y"].tolist() == [201.0, 500.0, 301.0]


def test_results_that_are_none_need_no_name(calls_of, here, lines):
    with torch.library._scoped_library("npudiff_recorder", "DEF") as library:
        library.define("first(Tensor x, Tensor? y=None, int[] z=[]) -> (Tensor, Tensor, Tensor[])")
        library.impl("first", lambda x, y=None, z=(): (x * 2, None, [x + 1, x + 2]), "CPU")
        library.define("nothing(Tensor(a!) x) -> ()")
        library.impl("nothing", lambda x: [x.add_(1)][1:] or None, "CPU")

        def function(inputs, target):
            one, _, rest = torch.ops.npudiff_recorder.first(inputs.x, z=[1, 2])
            torch.ops.npudiff_recorder.nothing(rest[0])
            return one + rest[0] - inputs.x - 2

        script = calls_of(function)
        text = lines(script)
        assert "first, _, [first_2, first_3] = torch.ops.npudiff_recorder.first.default(x=x, y=None, z=[1, 2])" in text
        assert "\n    torch.ops.npudiff_recorder.nothing.default(x=first_2)\n" in text
        assert here(script).seen["y"].tolist() == [2.0, 400.0, 600.0]
        assert "    'npudiff_recorder::nothing.default',\n" in script.text


def test_what_nothing_needs_is_left_out(calls_of, lines):
    def function(inputs, target):
        torch.ones(3) + inputs.x.exp()
        return inputs.x * 2

    assert lines(calls_of(function)).count("torch.ops.") == 1


def numpy_writes(inputs, target):
    y = torch.empty(3)
    y.numpy()[:] = [2, 400, 600]
    return y + 0


def memory_is_written(inputs, target):
    y = torch.zeros(3)
    numbers = inputs.x * 2
    ctypes.memmove(y.data_ptr(), numbers.data_ptr(), 12)
    return y + 0


def as_the_memory_was(inputs, target):
    numbers = inputs.x * 2
    y = torch.zeros(1000)
    y[-3:] = numbers
    where = y.data_ptr()
    for _ in range(100):  # what was freed last is given out next, and its end is as it was left
        del y
        y = torch.empty(1000)
        if y.data_ptr() == where:
            break
    ctypes.memmove(y.data_ptr() + 4 * 997, numbers.data_ptr(), 12)
    return y[-3:] + 0


def another_thread(inputs, target):
    y = torch.zeros(3)
    thread = threading.Thread(target=lambda: y.copy_(inputs.x * 2))
    thread.start()
    thread.join()
    return y + 0


class Loud(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return torch.ones(3)

    __torch_function__ = torch._C._disabled_torch_function_impl


def subclass(inputs, target):
    return torch.Tensor._make_subclass(Loud, inputs.x) + 1


def sparse(inputs, target):
    return inputs.x.to_sparse().to_dense() * 2


def generator(inputs, target):
    with torch.library._scoped_library("npudiff_generator", "DEF") as library:
        library.define("f(Tensor x, Generator g) -> Tensor")
        library.impl("f", lambda x, g: x * 2, "CPU")
        return torch.ops.npudiff_generator.f(inputs.x, torch.Generator())


def from_python(inputs, target):
    return torch.tensor([2 * number for number in inputs.x.tolist()])


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (numpy_writes, "something that is not an operator writes into its tensors: the host, or a kernel of its own"),
        (memory_is_written, "something that is not an operator writes into its tensors"),
        (as_the_memory_was, "something that is not an operator writes into its tensors"),
        (another_thread, "something that is not an operator writes into its tensors"),
        (subclass, "an operator is given a Loud, which makes calls of its own"),
        (sparse, "not strided: torch.sparse_coo"),
        (generator, "an operator is given a random generator, whose numbers are others on another device"),
        (from_python, "what is wrong in the end was put together by Python, and not computed by operators"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_a_script_cannot_say_is_said_in_a_sentence(calls_of, function, why):
    script = calls_of(function)
    assert why in script.why_not
    assert (script.text, script.tensors) == ("", b"")


def test_tensors_beyond_the_cap_leave_no_script(calls_of, monkeypatch):
    large = torch.zeros(2**20)
    script = calls_of(lambda inputs, target: inputs.x + large[:3])
    assert not script.why_not
    monkeypatch.setattr("npudiff.findings.reproduce.MAX_REPRODUCE_TENSORS", 2**21)
    script = calls_of(lambda inputs, target: inputs.x + large[:3])
    assert script.why_not == "the tensors of its calls have 5 MiB, and 2 are kept"
    monkeypatch.setattr("npudiff.findings.reproduce.recorder.MOST_BYTES", 2**20)
    assert (
        calls_of(lambda inputs, target: inputs.x + large[:3]).why_not == "the tensors of its calls have more than 1 MiB"
    )


def test_a_loop_without_end_leaves_no_script(calls_of, monkeypatch):
    monkeypatch.setattr("npudiff.findings.reproduce.recorder.MOST_EVENTS", 50)

    def function(inputs, target):
        y = inputs.x
        for _ in range(100):
            y = y + 0
        return y

    assert calls_of(function).why_not == "it makes more than 50 calls"


def test_what_is_right_is_kept_with_the_sign_of_its_zeros(toy, calls_of, here):
    from npudiff.reference.bounds import Expected

    zeros = torch.tensor([0.0, -0.0, 0.0])

    def exact(inputs):
        return {"y": Expected(zeros, torch.zeros(3, dtype=torch.float64), torch.float32)}

    right = calls_of(lambda inputs, target: inputs.x * torch.tensor([0.0, -0.0, 0.0]), reference=exact)
    assert not here(right).wrong
    assert here(calls_of(lambda inputs, target: inputs.x * 0, reference=exact)).wrong


def test_two_runs_that_agree_in_nan_agree(toy, calls_of, here):
    runs = []

    def function(inputs, target):
        runs.append(len(runs))
        return inputs.x * float("nan") if len(runs) % 2 else inputs.x / 0 * 0

    script = calls_of(function, prop=toy.REPEATS)
    assert "nan_is_nan=True" in script.text
    assert not here(script).wrong


def test_a_relation_compares_its_runs_with_each_other(toy, calls_of, here, lines):
    runs = []

    def function(inputs, target):
        runs.append(len(runs))
        return inputs.x * (2 + len(runs) % 2)

    script = calls_of(function, prop=toy.REPEATS)
    text = lines(script)
    assert "# run 1 of the implementation" in text
    assert "# run 2 of the implementation" in text
    assert "# compared: twice" in text
    assert "expected_y" not in text
    seen = here(script)
    assert (seen.wrong, seen.seen["y"].tolist()) == (True, [2.0, 400.0, 600.0])


def test_a_buffer_that_is_returned_again_is_copied_before_the_next_run(toy, calls_of, here, lines):
    buffer, runs = torch.zeros(3), []

    def function(inputs, target):
        runs.append(len(runs))
        return torch.mul(inputs.x, 1 + len(runs) % 2, out=buffer)

    script = calls_of(function, prop=toy.REPEATS)
    assert [line.strip() for line in lines(script).splitlines() if ".cpu()" in line] == [
        "y = constant.cpu().clone()", "y_2 = constant.cpu().clone()"]  # fmt: skip
    assert here(script).wrong


def test_what_is_not_part_of_a_run_is_done_on_the_host(toy, calls_of, lines):
    text = lines(calls_of(lambda inputs, target: inputs.x * 2, prop=toy.REPEATS))
    assert "y = mul.cpu()" in text
    assert "torch.ops.aten._to_copy.default(y, dtype=torch.float64)" in text
    assert "bound_y = run.load('bound_y', torch.float64, (3,), stride=(0,), device=\"cpu\")" in text


def test_a_wrong_shape_and_a_wrong_dtype_are_wrong(calls_of, here, capsys):
    assert here(calls_of(lambda inputs, target: inputs.x[:1] * 2)).wrong
    assert "y: WRONG: it is [1] torch.float32, and must be [3] torch.float32" in capsys.readouterr().out
    assert here(calls_of(lambda inputs, target: (inputs.x * 2).double())).wrong
    assert "y: WRONG: it is [3] torch.float64, and must be [3] torch.float32" in capsys.readouterr().out


def test_the_gain_of_rows_is_judged(calls_of, here, capsys):
    from npudiff.reference.bounds import Expected

    def gained(inputs):
        value = inputs.x.to(torch.float64)[None] * 2
        return {
            "y": Expected(value, torch.full_like(value, 1e3), torch.float32, torch.tensor([0.01], dtype=torch.float64))
        }

    assert here(calls_of(lambda inputs, target: inputs.x[None] * 2.1, reference=gained)).wrong
    assert "gain error of a row / bound is 5" in capsys.readouterr().out
    assert not here(calls_of(lambda inputs, target: inputs.x[None] * 2.01, reference=gained)).wrong
