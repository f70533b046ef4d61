"""The gated delta rule in float64, head by head and token by token, as its documentation writes it."""

from types import SimpleNamespace

import pytest
import torch


def draw(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def unit(x):
    return torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype)


def exact(state, query, key, value, beta, scale, g=None, gk=None):
    """Run one sequence: state [Nv, Dv, Dk], [L, Nk, Dk], [L, Nv, Dv]; return states [L, ...], outputs, and bounds.

    The bounds say what float32 may lose: they are the same calculation with magnitudes.
    """
    state, query, key, value, beta = (one.double() for one in (state, query, key, value, beta))
    length, heads, _ = value.shape
    share = heads // key.shape[1]
    states, outputs = torch.empty(length, *state.shape).double(), torch.empty_like(value)
    sizes, output_sizes = torch.empty_like(states), torch.empty_like(value)
    for h in range(heads):
        s, size = state[h], state[h].abs()
        for t in range(length):
            q, k, v = query[t, h // share] * scale, key[t, h // share], value[t, h]
            decay = 1.0 if g is None else g[t, h].double().exp()
            columns = 1.0 if gk is None else gk[t, h].double().exp()
            s, size = s * decay * columns, size * decay * columns
            s, size = (
                s + beta[t, h] * torch.outer(v - s @ k, k),
                size + beta[t, h] * torch.outer(v.abs() + size @ k.abs(), k.abs()),
            )
            states[t, h], sizes[t, h] = s, size
            outputs[t, h], output_sizes[t, h] = s @ q, size @ q.abs()
    return SimpleNamespace(states=states, outputs=outputs, sizes=sizes, output_sizes=output_sizes)


def holds(given, value, size):
    """Whether bfloat16 numbers are a value, rounded once, of a float32 calculation with such magnitudes."""
    return bool(((given.double() - value).abs() <= 2.0**-8 * value.abs() + 2e-6 * size).all())


def tokens(count, heads, dims, *, gate=1.0):
    """Draw what both forms take for each token: ``heads`` and ``dims`` are those of key and of value."""
    (key_heads, value_heads), (key_dim, value_dim) = heads, dims
    return {
        "query": unit(draw(count, key_heads, key_dim)),
        "key": unit(draw(count, key_heads, key_dim, seed=1)),
        "value": draw(count, value_heads, value_dim, seed=2),
        "beta": uniform(count, value_heads, seed=4).bfloat16(),
        "scale": key_dim**-0.5,
        "g": -gate * uniform(count, value_heads, seed=5),
    }


@pytest.fixture(scope="session")
def rule():
    return SimpleNamespace(draw=draw, uniform=uniform, unit=unit, exact=exact, holds=holds, tokens=tokens)
