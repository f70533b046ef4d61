"""Products that are made in pieces: all of them arrive, and int8 is exact."""

import pytest
import torch

from npudiff.device.simulator.mla.stages import product, product_of_int8, product_per_head


def whole(generator, *shape, top=3):
    return torch.randint(-top, top + 1, shape, generator=generator).bfloat16()


@pytest.mark.parametrize("shape", [(7, 5), (100, 2**14), (3000, 900), (65, 2**15 + 1)])
def test_product(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = whole(generator, 3, shape[0]), whole(generator, *shape)
    result = product(x, weight)
    assert result.dtype == torch.float32
    assert torch.equal(result.double(), x.double() @ weight.double())


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 1024, 1024), (40, 128, 512), (3, 2, 2**20 + 1)])
def test_product_per_head(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = whole(generator, 2, *shape[:2]), whole(generator, *shape)
    expected = torch.stack([x[:, head].double() @ weight[head].double() for head in range(shape[0])], 1)
    assert torch.equal(product_per_head(x, weight).double(), expected)


def test_products_of_int8_are_exact():
    """The largest sums of a real call are beyond 2**24, where float32 has gaps."""
    for x, w in ((-128, -128), (127, -128), (127, 127)):
        row = torch.full((1, 7168), x, dtype=torch.int8)
        tiles = torch.full((224, 2, 32), w, dtype=torch.int8)
        tiles[7, 1, 3] = 1
        assert product_of_int8(row, tiles).tolist() == [[7168 * x * w, 7167 * x * w + x]]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (3, 2080), generator=generator, dtype=torch.int8)
    tiles = torch.randint(-128, 128, (65, 1500, 32), generator=generator, dtype=torch.int8)
    plain = tiles.permute(1, 0, 2).reshape(1500, 2080)
    assert torch.equal(product_of_int8(x, tiles), (x.long() @ plain.long().t()).int())
