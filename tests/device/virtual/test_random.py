"""Random operators: seeds and states mean what they mean on a device, and the host's generator is left alone."""

from __future__ import annotations

import pytest

pytestmark = [
    pytest.mark.virtual,
    # torch_npu's empty_like says so, on hardware too
    pytest.mark.filterwarnings("ignore:Cannot create tensor with internal format:UserWarning"),
]


def _with_and_without_generators():
    """Operators by how they get their numbers: from a generator that they are given, or from the device's own."""
    import torch

    def on(**options):
        return {"device": "npu", **options}

    return {
        "rand": lambda **o: torch.rand(1000, **on(**o)),
        "randn": lambda **o: torch.randn(1000, **on(**o)),
        "randint": lambda **o: torch.randint(0, 1000, (1000,), **on(**o)),
        "randperm": lambda **o: torch.randperm(1000, **on(**o)),
        "normal_": lambda **o: torch.empty(1000, device="npu").normal_(1, 2, **o),
        "uniform_": lambda **o: torch.empty(1000, device="npu").uniform_(-1, 1, **o),
        "exponential_": lambda **o: torch.empty(1000, device="npu").exponential_(**o),
        "random_": lambda **o: torch.empty(1000, dtype=torch.int64, device="npu").random_(**o),
        "bernoulli": lambda **o: torch.bernoulli(torch.full((1000,), 0.5, device="npu"), **o),
        "multinomial": lambda **o: torch.multinomial(torch.ones(1000, device="npu"), 500, **o),
    }, {
        "rand_like": lambda: torch.rand_like(torch.empty(1000, device="npu")),
        "randn_like": lambda: torch.randn_like(torch.empty(1000, device="npu")),
        "randint_like": lambda: torch.randint_like(torch.empty(1000, device="npu"), 0, 1000),
        "dropout": lambda: torch.nn.functional.dropout(torch.ones(1000, device="npu"), 0.5),
        "native_dropout": lambda: torch.native_dropout(torch.ones(1000, device="npu"), 0.5, True)[0],
        "rrelu": lambda: torch.rrelu(-torch.ones(1000, device="npu"), training=True),
        "poisson": lambda: torch.poisson(torch.full((1000,), 5.0, device="npu")),
    }


def draws():
    given, own = _with_and_without_generators()
    return {**given, **own}


def test_the_same_seed_gives_the_same_numbers_and_another_gives_others():
    import torch

    for name, draw in draws().items():
        torch.npu.manual_seed(7)
        first, second = draw().cpu(), draw().cpu()
        torch.npu.manual_seed(7)
        assert torch.equal(draw().cpu(), first), name
        assert torch.equal(draw().cpu(), second), name
        assert not torch.equal(first, second), name
        torch.npu.manual_seed(8)
        assert not torch.equal(draw().cpu(), first), name


def test_a_state_that_is_put_back_gives_the_same_numbers():
    import torch

    for name, draw in draws().items():
        draw()
        state = torch.npu.get_rng_state()
        first = draw().cpu()
        torch.npu.set_rng_state(state)
        assert torch.equal(draw().cpu(), first), name


def test_the_hosts_generator_is_left_alone():
    import torch

    before = torch.get_rng_state()
    for name, draw in draws().items():
        draw()
        assert torch.equal(torch.get_rng_state(), before), name
    with pytest.raises(RuntimeError):
        torch.multinomial(torch.full((3,), -1.0, device="npu"), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_is_given_is_the_one_that_moves():
    import torch

    for name, draw in _with_and_without_generators()[0].items():
        own = torch.npu.get_rng_state()
        generator = torch.Generator("npu").manual_seed(3)
        first, second = draw(generator=generator).cpu(), draw(generator=generator).cpu()
        assert torch.equal(draw(generator=torch.Generator("npu").manual_seed(3)).cpu(), first), name
        assert not torch.equal(first, second), name
        assert torch.equal(torch.npu.get_rng_state(), own), name
        state = generator.get_state()
        third = draw(generator=generator).cpu()
        generator.set_state(state)
        assert torch.equal(draw(generator=generator).cpu(), third), name


def test_numbers_are_of_their_distributions():
    """Means and deviations of 100,000 draws, within six standard errors."""
    import torch

    torch.npu.manual_seed(1)
    count = 100_000
    for drawn, mean, deviation in (
        (torch.rand(count, device="npu"), 0.5, 12**-0.5),
        (torch.randn(count, device="npu"), 0.0, 1.0),
        (torch.randint(0, 10, (count,), device="npu").float(), 4.5, 8.25**0.5),
        (torch.empty(count, device="npu").exponential_(2), 0.5, 0.5),
        (torch.bernoulli(torch.full((count,), 0.3, device="npu")), 0.3, 0.21**0.5),
        (torch.nn.functional.dropout(torch.ones(count, device="npu"), 0.5), 1.0, 1.0),
    ):
        error = deviation / count**0.5
        assert abs(drawn.double().mean().item() - mean) < 6 * error
        assert abs(drawn.double().std().item() - deviation) < 12 * error
    assert torch.randperm(100, device="npu").sort()[0].tolist() == list(range(100))


def test_dropout_scales_what_it_keeps_and_its_gradient_likewise():
    import torch

    x = torch.ones(1000, device="npu", requires_grad=True)
    y = torch.nn.functional.dropout(x, 0.25)
    y.sum().backward()
    assert set(y.detach().unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(x.grad, y.detach())


def test_a_checkpoint_draws_the_same_numbers_again():
    import torch
    from torch.utils.checkpoint import checkpoint

    x = torch.ones(1000, device="npu", requires_grad=True)
    y = checkpoint(lambda value: torch.nn.functional.dropout(value, 0.5), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("version", ["", "_v2", "_v3"])
def test_attention_drops_what_the_mask_of_its_seed_and_offset_says(version):
    import torch
    import torch_npu

    query = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)).half().npu()
    identity = torch.eye(16).half().expand(1, 2, 16, 16).npu()  # so that the result is the weights

    def attend():
        call = getattr(torch_npu, f"npu_fusion_attention{version}")
        result = call(query, identity, identity, 2, "BNSD", keep_prob=0.5)
        return result[0].cpu() != 0, tuple(int(one) for one in result[4:6])

    for _ in range(2):  # the mask leaves the generator alone, whose seed a call without a mask takes
        torch.npu.manual_seed(3)
        mask = torch_npu._npu_dropout_gen_mask(query, [1, 2, 16, 16], p=0.5, seed=3, offset=0)
        kept, state = attend()
        bits = (mask.cpu()[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten().view(1, 2, 16, 16)
        assert state == (3, 0)
        assert torch.equal(kept, bits.bool())
    assert not torch.equal(attend()[0], kept)
