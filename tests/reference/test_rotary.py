from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from npudiff.properties.rotary import RotaryCase, build_inputs
from npudiff.reference.rotary import STYLES, RotaryInputs, rotary

GENERATOR = torch.Generator().manual_seed(5)


def inputs(style="half", dim=8, head_dim=8, dtype=torch.float32, tokens=3, table=11):
    def random(*shape):
        return torch.randn(*shape, generator=GENERATOR).to(dtype)

    positions = torch.randint(0, table, (tokens,), generator=GENERATOR)
    return RotaryInputs(random(tokens, 3, head_dim), random(tokens, 2, head_dim), positions, random(table, dim), style)


def test_a_quarter_turn_worked_by_hand():
    """Cosine 0 and sine 1 turn (a, b) into (-b, a), wherever the pair stands."""
    states = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    table = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for style, turned in (
        ("half", [-3, -4, 1, 2]), ("interleaved", [-2, 1, -4, 3]), ("interleaved_to_half", [-2, -4, 1, 3])
    ):  # fmt: skip
        result = rotary(RotaryInputs(states, states, torch.tensor([0]), table, style))
        assert result["query"].value.tolist() == [[turned]]
        assert result["key"].value.tolist() == [[turned]]


@pytest.mark.parametrize(("style", "interleaved"), [("half", False), ("interleaved", True)])
@pytest.mark.parametrize(("dim", "head_dim"), [(8, 8), (4, 8), (6, 7)])
def test_it_is_a_loop_over_single_pairs(style, interleaved, dim, head_dim):
    given = inputs(style, dim, head_dim)
    result = rotary(given)["query"].value
    for token, position in enumerate(given.positions.tolist()):
        for head in range(3):
            row = given.query[token, head].double().tolist()
            right = list(row)
            for i in range(dim // 2):
                a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + dim // 2)
                cosine = float(given.cos_sin_cache[position, i])
                sine = float(given.cos_sin_cache[position, dim // 2 + i])
                right[a] = row[a] * cosine - row[b] * sine
                right[b] = row[b] * cosine + row[a] * sine
            assert torch.allclose(result[token, head], torch.tensor(right, dtype=torch.float64), atol=1e-12, rtol=0)


def test_elements_beyond_the_rotary_dim_are_copies():
    given = inputs(dim=4, head_dim=8, dtype=torch.bfloat16)
    result = rotary(given)["key"]
    assert torch.equal(result.value[..., 4:], given.key[..., 4:].double())
    assert not result.bound[..., 4:].any()
    assert bool((result.bound[..., :4] > 0).all())


def test_halves_are_what_transformers_rotate():
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    given = inputs("half", 8, 8, torch.float64)
    rows = given.cos_sin_cache[given.positions]
    cosine, sine = (torch.cat([half, half], dim=-1)[None] for half in rows.chunk(2, dim=-1))
    query, key = (states.transpose(0, 1)[None] for states in (given.query, given.key))
    theirs = llama.apply_rotary_pos_emb(query, key, cosine, sine)
    for name, right in zip(("query", "key"), theirs, strict=True):
        assert torch.allclose(rotary(given)[name].value, right[0].transpose(0, 1), atol=1e-12, rtol=0)


def test_neighbours_are_what_transformers_rotate():
    gptj = importlib.import_module("transformers.models.gptj.modeling_gptj")
    given = inputs("interleaved", 8, 8, torch.float64)
    sine_cosine = given.cos_sin_cache[given.positions].roll(4, dims=-1)[None]
    sine, cosine = sine_cosine.split(4, dim=-1)
    right = gptj.apply_rotary_pos_emb(given.query[None], sine, cosine)[0]
    assert torch.allclose(rotary(given)["query"].value, right, atol=1e-12, rtol=0)


def test_interleaved_to_half_is_the_interleaved_result_in_another_order():
    given = inputs("interleaved")
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    one, other = rotary(given)["query"], rotary(replace(given, style="interleaved_to_half"))["query"]
    assert torch.equal(one.value[..., order], other.value)
    assert torch.equal(one.bound[..., order], other.bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("fused", [True, False])
def test_correct_devices_stay_within_the_bound_and_come_close(dtype, fused):
    given = inputs(dim=64, head_dim=64, dtype=dtype, tokens=200)
    rows = given.cos_sin_cache[given.positions].unsqueeze(1)
    states = given.query
    if fused:
        rows, states = rows.float(), states.float()
    cosine, sine = rows.chunk(2, dim=-1)
    first, second = states.chunk(2, dim=-1)
    actual = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(dtype)
    expected = rotary(given)["query"]
    ratio = (actual.double() - expected.value).abs() / expected.bound
    assert 0.4 < float(ratio.max()) <= 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"style": "neox"}, "style is one of half, interleaved, interleaved_to_half, got neox"),
        ({"cos_sin_cache": torch.ones(11, 10)}, "rotary_dim must be even and at most head_dim 8, got 10"),
        ({"cos_sin_cache": torch.ones(11, 7)}, "rotary_dim must be even"),
        ({"positions": torch.tensor([0, 1, 11])}, "positions must lie in 0..10"),
        ({"positions": torch.tensor([0, -1, 1])}, "positions must lie in 0..10"),
        ({"key": torch.ones(3, 2, 6)}, "queries have head dim 8, keys 6"),
    ],
)
def test_what_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        rotary(replace(inputs(), **changed))


@pytest.mark.parametrize("style", STYLES)
def test_each_section_is_rotated_by_positions_of_its_own(style):
    """Against rotations of each section alone, whose pairs are put back by hand."""
    case = RotaryCase(3, 2, 1, 64, 96, "float32", style, sections="8/12/12", table=9)
    inputs = build_inputs(case)
    assert inputs.positions.shape == (3, 3)
    assert len({tuple(row) for row in inputs.positions.tolist()}) > 1
    together = rotary(inputs)["query"].value
    frequency = 0
    for section, size in enumerate((8, 12, 12)):
        alone = rotary(replace(inputs, positions=inputs.positions[section], sections=()))["query"].value
        for index in range(frequency, frequency + size):
            pair = (2 * index, 2 * index + 1) if style == "interleaved" else (index, 32 + index)
            for element in pair:
                assert torch.equal(together[..., element], alone[..., element])
        frequency += size
    assert torch.equal(together[..., 64:], inputs.query[..., 64:].double())


def test_sections_agree_with_those_of_transformers():
    qwen = importlib.import_module("transformers.models.qwen2_vl.modeling_qwen2_vl")
    case = build_inputs(RotaryCase(5, 2, 1, 64, 64, "float32", sections="8/12/12", table=9))
    query, key = (states.double().transpose(0, 1)[None] for states in (case.query, case.key))
    compose = qwen.Qwen2VLRotaryEmbedding.recomposition_frequencies
    halves = case.cos_sin_cache[case.positions].double().chunk(2, dim=-1)  # [3, tokens, 32] each
    cosine, sine = (compose(SimpleNamespace(mrope_section=[8, 12, 12]), half.unsqueeze(1)) for half in halves)
    expected = rotary(case)
    for name, theirs in zip(("query", "key"), qwen.apply_rotary_pos_emb(query, key, cosine, sine), strict=True):
        assert torch.allclose(theirs[0].transpose(0, 1), expected[name].value, rtol=1e-12, atol=1e-14)


def test_sections_that_do_not_fit_are_refused():
    inputs = build_inputs(RotaryCase(3, sections="8/12/12"))
    with pytest.raises(ValueError, match=r"sections \(8, 12\) do not add up to half of rotary_dim 64"):
        rotary(replace(inputs, sections=(8, 12), positions=inputs.positions[:2]))
    with pytest.raises(ValueError, match=r"positions must be \[3, 3\], got \[3\]"):
        rotary(replace(inputs, positions=inputs.positions[0]))


def test_a_long_table_is_a_view_whose_rows_overlap():
    table = build_inputs(RotaryCase(1, table=2**20)).cos_sin_cache
    assert table.shape == (2**20, 64)
    assert table.untyped_storage().nbytes() < 2**24
    assert torch.equal(table[5, 7:14], table[6, :7])
