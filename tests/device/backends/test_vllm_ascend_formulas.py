"""Operators of vllm-ascend's library that are formulas here: against loops over single elements, and float64."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.backends.vllm_ascend.formulas import FORMULAS
from npudiff.device.backends.vllm_ascend.operators import COMPOSED
from npudiff.device.simulator.errors import DeviceFault, NotSimulated
from npudiff.device.simulator.library import install


@pytest.fixture
def sim():
    """Operators of torch_npu on the CPU."""
    install()


def normal(*shape, dtype=torch.float16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_of_rows(dtype):
    x, weight, indices = normal(4, 32, dtype=dtype), normal(3, 8, 32, dtype=dtype, seed=1), torch.tensor([2, -1, 0, 2])
    y = normal(4, 8, dtype=torch.float32, seed=2)
    wanted = y.double()
    for row, adapter in enumerate(indices.tolist()):
        if adapter >= 0:
            wanted[row] += weight[adapter].double() @ x[row].double() * 0.5
    assert FORMULAS["bgmv_shrink"](x, weight, indices, y, 0.5) is None
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    wide, before = normal(4, 40, dtype=dtype, seed=3), normal(4, 40, dtype=dtype, seed=3)
    given = FORMULAS["bgmv_expand"](y, normal(3, 16, 8, dtype=dtype, seed=4), indices, wide, 10, 16)
    assert given is wide
    wanted = before.double()
    for row, adapter in enumerate(indices.tolist()):
        if adapter >= 0:
            wanted[row, 10:26] += normal(3, 16, 8, dtype=dtype, seed=4)[adapter].double() @ y[row].double()
    bound = torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-5
    assert ((wide.double() - wanted).abs() <= bound).all()
    assert torch.equal(wide[1], before[1])


def test_blocks_whose_heads_came_in_parts():
    block_size, heads, dim, parts = 4, 4, 8, 2
    caches = [[normal(6, block_size, heads, dim, seed=seed + 9 * kind) for seed in range(3)] for kind in range(2)]
    before = [[cache.clone() for cache in kind] for kind in caches]
    blocks = torch.tensor([4, 1])
    FORMULAS["transpose_kv_cache_by_block"](*caches, blocks, block_size, heads, dim, parts, 2)
    for kind, old in zip(caches, before, strict=True):
        for cache, other in zip(kind[:2], old[:2], strict=True):
            for block in (4, 1):
                came = other[block].reshape(parts, block_size, heads // parts * dim)
                for token in range(block_size):
                    assert torch.equal(cache[block, token].flatten(), torch.cat([part[token] for part in came]))
            assert torch.equal(cache[[0, 2, 3, 5]], other[[0, 2, 3, 5]])
        assert torch.equal(kind[2], old[2]), "layers behind the number are left alone"


def expanded(shift, ends, total=14):
    starts, tokens = [0, 4, 9], torch.arange(50, 59)
    return FORMULAS["npu_copy_and_expand_eagle_inputs"](
        tokens, torch.arange(7, 16), torch.tensor([90, 91]), torch.tensor(starts), torch.tensor(ends), -5, -6, 3, shift,
        total,
    )  # fmt: skip


def test_accepted_sampled_drafted_and_rejected_tokens():
    """Two requests of 4 and 5 tokens, of which one and three are rejected; three slots each."""
    ids, places, rejected, masked, new, mapping = (one.tolist() for one in expanded(False, [2, 5], 15))
    assert ids == [50, 51, 52, 90, -6, -6, -5, 54, 55, 91, -6, -6, -5, -5, -5]
    assert places == [7, 8, 9, 10, 11, 12, 0, 11, 12, 13, 14, 15, 0, 0, 0]
    assert rejected == [0] * 6 + [1] + [0] * 5 + [1] * 3
    assert masked == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert new == [3, 4, 5, 9, 10, 11]
    assert mapping == [0] * 9


def test_tokens_that_are_shifted_by_one():
    ids, places, rejected, masked, new, mapping = (one.tolist() for one in expanded(True, [2, 5], 13))
    assert ids == [51, 52, 90, -6, -6, -5, 55, 91, -6, -6, -5, -5, -5]
    assert places == [7, 8, 9, 10, 11, 0, 11, 12, 13, 14, 0, 0, 0]
    assert (rejected[5], rejected[10:], sum(rejected)) == (1, [1, 1, 1], 4)
    assert [at for at, one in enumerate(masked) if one] == [3, 4, 8, 9]
    assert new == [2, 3, 4, 7, 8, 9]
    assert mapping == [0, 1, 2, 3, 6, 7, 8, 9, 10]


def test_too_few_tokens_are_a_fault():
    with pytest.raises(DeviceFault, match="request 1 ends at 15, there are 14 tokens"):
        expanded(False, [2, 5])


@pytest.mark.parametrize("limit", [0.0, 0.25])
def test_halves_are_gated_in_mode_1(sim, limit):
    """As the kernel takes them; what its header says of odd and even columns is of another one."""
    x = torch.randint(-100, 100, (5, 64), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    weight_scale, row_scale = normal(64, dtype=torch.float32).abs() / 50, normal(5, dtype=torch.float32, seed=1).abs()
    rows, scale = COMPOSED["npu_dequant_swiglu_quant"](
        x, weight_scale=weight_scale, activation_scale=row_scale, quant_mode=1, swiglu_mode=1, clamp_limit=limit
    )
    gate, up = (x.double() * weight_scale.double() * row_scale.double().unsqueeze(1)).chunk(2, -1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    wanted = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(scale.double(), wanted.abs().amax(-1) / 127, rtol=1e-5, atol=1e-9)
    assert (rows.double() - wanted / scale.double().unsqueeze(1)).abs().max() <= 0.5 + 1e-3


def test_states_of_float32_and_a_number_of_tokens_to_skip(sim):
    query, key = (normal(3, 2, 16, dtype=torch.bfloat16, seed=seed) / 4 for seed in range(2))
    value, beta = normal(3, 4, 8, dtype=torch.bfloat16, seed=2), torch.rand(3, 4).bfloat16()
    state, g = normal(3, 4, 8, 16, dtype=torch.float32, seed=3), -torch.rand(3, 4)
    before = state.clone()
    named = {"beta": beta, "scale": 0.25, "ssm_state_indices": torch.arange(3, dtype=torch.int32), "g": g}
    lengths = torch.tensor([1, 1, 1], dtype=torch.int32)
    given = FORMULAS["npu_recurrent_gated_delta_rule"](query, key, value, state, actual_seq_lengths=lengths, **named)
    assert torch.equal(state[0], before[0]), "skipped"
    for token in (1, 2):
        for head in range(4):
            old = before[token, head].double() * g[token, head].double().exp()
            k, q = (one[token, head // 2].double() for one in (key, query))
            new = old + ((value[token, head].double() - old @ k) * beta[token, head].double()).outer(k)
            torch.testing.assert_close(state[token, head].double(), new, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(given[token, head].double(), new @ q * 0.25, rtol=2e-2, atol=2e-2)


def test_slots_behind_those_of_tokens_are_not_read(sim):
    query, value, state = (
        normal(2, 1, 16, dtype=torch.bfloat16),
        normal(2, 1, 16, dtype=torch.bfloat16),
        normal(3, 1, 16, 16),
    )
    more, less = state.float(), state.float()
    named = {"beta": torch.ones(2, 1).bfloat16(), "scale": 0.25, "actual_seq_lengths": torch.tensor([0, 2]).int()}
    slots = torch.tensor([2, 0, 7], dtype=torch.int32)
    for pool, given in ((more, slots), (less, slots[:2])):
        FORMULAS["npu_recurrent_gated_delta_rule"](query, query, value, pool, ssm_state_indices=given, **named)
    assert torch.equal(more, less)
    assert not torch.equal(more, state.float())


def test_a_convolution_takes_the_first_of_a_row_of_lines(sim):
    x, lines = normal(3, 16), normal(4, 5, 16, seed=1)
    weight = normal(16, 4, seed=2).t()
    before, output = lines.clone(), torch.empty_like(x)
    starts, rows = torch.tensor([0, 1, 3]).int(), torch.tensor([[2, 9], [1, 9]]).int()
    accepted = torch.tensor([2, 1]).int()
    given = FORMULAS["npu_causal_conv1d_custom"](output, x, weight, lines, None, starts, rows, None, accepted, 0, -1, 1)
    assert given is output
    for line, first, new, at in ((2, 1, x[:1], 0), (1, 0, x[1:], 1)):
        z = torch.cat([before[line, first : first + 3], new]).double()
        for token in range(len(new)):
            wanted = (z[token : token + 4] * weight.double()).sum(0)
            torch.testing.assert_close(output[at + token].double(), wanted, rtol=1e-2, atol=1e-2)
        assert torch.equal(lines[line, : len(z) - 1].double(), z[1:])


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (-6, True, "enable_inner_out was True"),
        (-8, "kvcache", "cache_mode was 'kvcache'"),
        (-7, "no_quant", "no_quant"),
    ],
)
def test_forms_of_mla_preprocess_that_are_not_here_say_so(at, value, said):
    given = [None] * 20 + [None, None, "nzcache", "per_tensor_quant_asymm", False] + [torch.zeros(1)] * 5
    given[at] = value
    with pytest.raises(NotSimulated, match=said):
        COMPOSED["mla_preprocess"](torch.zeros(2, 3), *given)
