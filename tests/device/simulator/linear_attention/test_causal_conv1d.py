"""``causal_conv1d`` of sgl-kernel-npu against torch's convolution in float64; its lines; what it refuses."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, DeviceFault, OperatorRejected, UndefinedBehaviour, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

DIM = 32


def draw(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def convolve(x, weight, states, **keywords):
    return torch.ops.npu.causal_conv1d(x, weight, states, **keywords)


def exact(history, x, weight, bias, activation):
    """Return value and bound of one sequence; products of 16 bit are exact in float32, sums and SiLU round there."""
    z = torch.cat([history, x]).double().T[None]

    def convolution(rows, taps, shift):
        return torch.nn.functional.conv1d(rows, taps.double().T[:, None], shift, groups=DIM)[0].T

    total = convolution(z, weight, None if bias is None else bias.double())
    size = convolution(z.abs(), weight.abs(), None if bias is None else bias.double().abs())
    value = torch.nn.functional.silu(total) if activation else total
    return value, torch.finfo(x.dtype).eps / 2 * value.abs() + 1e-6 * size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize(("with_bias", "activation"), [(False, 0), (True, 1), (False, 1), (True, 0)])
def test_prefill_is_torchs_convolution(dtype, width, with_bias, activation):
    starts, lines, begun = [0, 5, 6, 6, 14], [3, 0, 2, 1], [True, False, True, True]
    x, weight = draw(14, DIM, dtype=dtype), draw(width, DIM, dtype=dtype, seed=1)
    states, bias = draw(4, width, DIM, dtype=dtype, seed=2), draw(DIM, dtype=dtype, seed=3) if with_bias else None
    before = states.clone()
    y = convolve(
        x,
        weight,
        states,
        bias=bias,
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        cache_indices=torch.tensor(lines, dtype=torch.int32),
        has_initial_state=torch.tensor(begun),
        activation_mode=activation,
    )
    expected = before.clone()
    for i, line in enumerate(lines):
        rows = x[starts[i] : starts[i + 1]]
        if not len(rows):
            continue
        history = before[line, : width - 1] * begun[i]
        value, bound = exact(history, rows, weight, bias, activation)
        assert ((y[starts[i] : starts[i + 1]].double() - value).abs() <= bound).all()
        expected[line, : width - 1] = torch.cat([history, rows])[-(width - 1) :]
    assert torch.equal(states, expected)  # rows behind the history, and lines without tokens, stay


def test_a_batch_of_equal_lengths_needs_no_starts():
    x, weight, states = draw(2, 3, DIM), draw(4, DIM, seed=1), draw(2, 3, DIM, seed=2)
    other = states.clone()
    y = convolve(x, weight, states, has_initial_state=torch.tensor([1, 0]), activation_mode=1)
    starts = torch.tensor([0, 3, 6])
    flat = convolve(
        x.view(6, DIM),
        weight,
        other,
        query_start_loc=starts,
        has_initial_state=torch.tensor([True, False]),
        activation_mode=1,
    )
    assert torch.equal(y.view(6, DIM), flat)
    assert torch.equal(states, other)


def test_any_split_of_a_sequence_gives_the_same_bits():
    x, weight, bias = draw(9, DIM), draw(4, DIM, seed=1), draw(DIM, seed=2)
    whole_state = torch.zeros(1, 3, DIM, dtype=x.dtype)
    options = {"bias": bias, "activation_mode": 1}
    whole = convolve(x, weight, whole_state, query_start_loc=torch.tensor([0, 9]), **options)
    for cut in range(1, 9):
        state = torch.full((1, 3, DIM), 7.0, dtype=x.dtype)  # dirty: the first part has no history
        first = convolve(x[:cut], weight, state, query_start_loc=torch.tensor([0, cut]), **options)
        rest = torch.tensor([0, 9 - cut])
        more = {"has_initial_state": torch.tensor([1]), "query_start_loc": rest}
        second = convolve(x[cut:], weight, state, **more, **options)
        assert torch.equal(torch.cat([first, second]), whole)
        assert torch.equal(state, whole_state)


def test_decode_steps_are_prefill():
    x, weight = draw(6, DIM), draw(4, DIM, seed=1)
    whole_state, state = torch.zeros(1, 3, DIM, dtype=x.dtype), torch.zeros(1, 3, DIM, dtype=x.dtype)
    whole = convolve(x, weight, whole_state, query_start_loc=torch.tensor([0, 6]))
    steps = [convolve(one[None], weight, state, query_start_loc=torch.tensor([0, 1]), run_mode=1) for one in x]
    assert torch.equal(torch.cat(steps), whole)
    assert torch.equal(state, whole_state)


@pytest.mark.parametrize("accepted", [1, 2, 3])
def test_the_next_verification_begins_behind_the_accepted_tokens(accepted):
    """Three drafts; then the call with ``num_accepted_tokens`` is the one of a sequence that had only those."""
    x, weight, following = draw(3, DIM), draw(4, DIM, seed=1), draw(3, DIM, seed=3)
    state = draw(1, 5, DIM, seed=2)
    history, starts = state[0, :3].clone(), torch.tensor([0, 3])
    convolve(x, weight, state, query_start_loc=starts, num_accepted_tokens=torch.tensor([1]), run_mode=1)
    assert torch.equal(state[0], torch.cat([history[1:], x]))
    y = convolve(
        following, weight, state, query_start_loc=starts, num_accepted_tokens=torch.tensor([accepted]), run_mode=1
    )
    value, bound = exact(torch.cat([history, x[:accepted]])[-3:], following, weight, None, 0)
    assert ((y.double() - value).abs() <= bound).all()


def test_a_line_too_short_for_all_drafts_keeps_the_last_rows():
    x, weight, state = draw(4, DIM), draw(4, DIM, seed=1), draw(1, 5, DIM, seed=2)
    before = state.clone()
    starts = torch.tensor([0, 4])
    convolve(x, weight, state, query_start_loc=starts, num_accepted_tokens=torch.tensor([1]), run_mode=1)
    assert torch.equal(state[0], torch.cat([x[1:], before[0, 3:]]))


@pytest.mark.parametrize("width", [2, 3])
def test_accepted_tokens_count_for_width_four_only(width):
    x, weight, state = draw(2, DIM), draw(width, DIM, seed=1), draw(1, 5, DIM, seed=2)
    other = state.clone()
    starts = torch.tensor([0, 2])
    y = convolve(x, weight, state, query_start_loc=starts, num_accepted_tokens=torch.tensor([2]), run_mode=1)
    assert torch.equal(y, convolve(x, weight, other, query_start_loc=starts, run_mode=1))
    assert torch.equal(state, other)


def test_accepted_tokens_are_cut_to_the_line():
    x, weight, state = draw(1, DIM), draw(4, DIM, seed=1), draw(1, 5, DIM, seed=2)
    before = state.clone()
    starts = torch.tensor([0, 1])
    y = convolve(x, weight, state, query_start_loc=starts, num_accepted_tokens=torch.tensor([9]), run_mode=1)
    value, bound = exact(before[0, 2:], x, weight, None, 0)
    assert ((y.double() - value).abs() <= bound).all()


def test_padded_sequences_are_left_out():
    x, weight, states = draw(3, DIM), draw(4, DIM, seed=1), draw(2, 3, DIM, seed=2)
    before = states.clone()
    lines = torch.tensor([-1, 1, -1])
    y = convolve(x, weight, states, query_start_loc=torch.arange(4), cache_indices=lines, run_mode=1)
    assert torch.equal(y[::2], unwritten((2, DIM), torch.bfloat16))
    assert torch.equal(states[0], before[0])
    assert torch.equal(states[1], torch.cat([before[1, 1:], x[1:2]]))


def test_silu_of_a_rounded_sum_is_a_choice():
    x, weight = draw(40, DIM), draw(4, DIM, seed=1)
    given = {"query_start_loc": torch.tensor([0, 40])}
    line = torch.zeros(1, 3, DIM, dtype=x.dtype)
    plain = convolve(x, weight, line.clone(), **given)
    wide = convolve(x, weight, line.clone(), activation_mode=1, **given)
    with changed(causal_conv1d_silu="of_rounded"):
        rounded = convolve(x, weight, line.clone(), activation_mode=1, **given)
    assert torch.equal(rounded, (plain.float() / (1 + (-plain.float()).exp())).bfloat16())
    assert not torch.equal(rounded, wide)


def test_a_shared_line_is_a_choice():
    x, weight = draw(3, DIM), draw(4, DIM, seed=1)
    given = {"query_start_loc": torch.arange(4), "cache_indices": torch.tensor([0, 0, 1]), "run_mode": 1}
    states = draw(2, 3, DIM, seed=2)
    ordered, spoiled = states.clone(), states.clone()
    y = convolve(x, weight, ordered, **given)
    assert torch.equal(ordered[0, 1:], x[:2])
    with changed(linear_shared_states="unpredictable"):
        other = convolve(x, weight, spoiled, **given)
    assert torch.equal(spoiled[0], unwritten((3, DIM), torch.bfloat16))
    assert torch.equal(other[:2], unwritten((2, DIM), torch.bfloat16))
    assert torch.equal(spoiled[1], ordered[1])
    assert torch.equal(other[2], y[2])


def test_prefill_reads_before_it_writes():
    x, weight = draw(6, DIM), draw(4, DIM, seed=1)
    given = {"cache_indices": torch.tensor([1, 1]), "has_initial_state": torch.tensor([True, True])}
    states = draw(2, 3, DIM, seed=2)
    apart = torch.cat([states, states[1:]])
    together = convolve(x, weight, states, query_start_loc=torch.tensor([0, 4, 6]), **given)
    given["cache_indices"] = torch.tensor([1, 2])
    assert torch.equal(together, convolve(x, weight, apart, query_start_loc=torch.tensor([0, 4, 6]), **given))


GIVEN = {"query_start_loc": torch.tensor([0, 1, 3])}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"x": draw(3, 2, 1, DIM)}, "x must be 2D or 3D tensor"),
        ({"weight": draw(4, DIM, 1)}, "weight must be 2D tensor"),
        ({"x": draw(3, DIM, dtype=torch.float32)}, "x was float32"),
        ({"weight": draw(4, DIM, dtype=torch.float16)}, "weight dtype must match x dtype"),
        ({"states": draw(2, 3, DIM, dtype=torch.float32)}, "conv_states dtype must match x dtype"),
        ({"x": draw(DIM, 3).T}, "x must be contiguous"),
        ({"states": draw(2, DIM, 3).transpose(1, 2)}, "conv_states must be contiguous"),
        ({"weight": draw(5, DIM)}, r"Only support width in \[2,4\]"),
        ({"query_start_loc": None}, "query_start_loc must have at least 2 elements"),
    ],
)
def test_what_the_host_code_refuses(spoil, words):
    call = {"x": draw(3, DIM), "weight": draw(4, DIM), "states": draw(2, 3, DIM)} | GIVEN
    convolve(**call)
    with pytest.raises(OperatorRejected, match=words):
        convolve(**(call | spoil))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"bias": draw(DIM, dtype=torch.float32)}, "bias is torch.float32"),
        ({"states": draw(2, 2, DIM)}, "lines have 2 rows, fewer than 3"),
        ({"query_start_loc": torch.tensor([0, 3, 1])}, "goes back from 3 to 1"),
        ({"cache_indices": torch.tensor([0])}, "cache_indices has 1 elements for 2 sequences"),
        ({"x": draw(3, 24), "weight": draw(4, 24), "states": draw(2, 3, 24)}, "24 channels are no multiple of 16"),
        ({"weight": draw(4, 16)}, "other channels than x"),
    ],
)
def test_what_the_host_code_does_not_check_is_undefined(spoil, words):
    call = {"x": draw(3, DIM), "weight": draw(4, DIM), "states": draw(2, 3, DIM)} | GIVEN
    with pytest.raises(UndefinedBehaviour, match=words):
        convolve(**(call | spoil))


@pytest.mark.parametrize(
    "spoil", [{"cache_indices": torch.tensor([0, 2])}, {"query_start_loc": torch.tensor([0, 1, 4])}]
)
def test_rows_and_lines_outside_are_faults(spoil):
    call = {"x": draw(3, DIM), "weight": draw(4, DIM), "states": draw(2, 3, DIM)} | GIVEN
    with pytest.raises(DeviceFault):
        convolve(**(call | spoil))
