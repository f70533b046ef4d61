"""Quirks: each at its hook, in its profile, and nowhere else."""

import pytest
import torch

from npudiff.device import simulator
from npudiff.device.simulator import quirks


@pytest.mark.parametrize("quirk", [q for p in simulator.PROFILES.values() for q in p.quirks], ids=lambda q: q.name)
def test_a_quirk_has_a_source_and_a_hook(quirk):
    assert quirk.source.startswith("https://")
    assert quirk.on_request or quirk.on_visibility


def masked_decode(lab, length, hidden_from, shape=(1, 1, 1)):
    sequences = lab.ragged([1], [length], dim=128)
    mask = torch.zeros(*shape, length, dtype=torch.bool)
    mask[..., hidden_from:] = True
    return lab.pack(sequences, "BSND") | {"atten_mask": mask}


@pytest.mark.parametrize("length", [512, 513, 700])
def test_decode_mask_ends_at_512(lab, length):
    """Length 512 is right, 513 is wrong: https://github.com/vllm-project/vllm-ascend/issues/15503."""
    arguments = masked_decode(lab, length, hidden_from=500)
    right, _ = lab.call(arguments)
    with simulator.use_profile("pessimistic"):
        shown, _ = lab.call(arguments)
    arguments["atten_mask"][..., 512:] = False
    forgetful, _ = lab.call(arguments)
    assert torch.equal(shown, forgetful)
    assert torch.equal(shown, right) == (length <= 512)


@pytest.mark.parametrize(("shape", "mode"), [((1, 1), 0), ((1, 1, 1), 1), ((1, 1, 1), 4)])
def test_other_masks_and_modes_are_not_concerned(lab, shape, mode):
    arguments = masked_decode(lab, 700, 300, shape) | {"sparse_mode": mode}
    right, _ = lab.call(arguments)
    with simulator.use_profile("pessimistic"):
        assert torch.equal(lab.call(arguments)[0], right)


def test_a_batch_of_masks_is_not_concerned(lab):
    sequences = lab.ragged([1, 1], [700, 650], dim=128)
    mask = torch.zeros(2, 1, 1, 700, dtype=torch.bool)
    mask[..., 300:] = True
    arguments = lab.pack(sequences, "BSND", fill=9.0) | {"atten_mask": mask}
    right, _ = lab.call(arguments)
    with simulator.use_profile("pessimistic"):
        assert torch.equal(lab.call(arguments)[0], right)


def test_tnd_without_mask_averages(lab):
    """https://github.com/vllm-project/vllm-ascend/issues/13699."""
    sequences = lab.ragged([2, 3], [40, 90], dim=128)
    arguments = lab.pack(sequences, "TND", block_size=128)
    with simulator.use_profile("pessimistic"):
        parts = lab.unpack(lab.call(arguments)[0], "TND", [2, 3])
    for part, value in zip(parts, sequences.values, strict=True):
        mean = value.float().mean(1, keepdim=True).repeat_interleave(2, 0).expand(-1, part.shape[1], -1)
        torch.testing.assert_close(part.float(), mean, rtol=2**-7, atol=2**-10)


@pytest.mark.parametrize("layout", ["TND", "BSND"])
def test_tnd_with_a_mask_and_other_layouts_are_not_concerned(lab, layout):
    arguments = lab.pack(lab.ragged([2], [90], dim=128), layout, block_size=128)
    arguments |= {"sparse_mode": 3, "atten_mask": lab.template()} if layout == "TND" else {}
    right, _ = lab.call(arguments)
    with simulator.use_profile("pessimistic"):
        assert torch.equal(lab.call(arguments)[0], right)


def test_any_profile_can_have_a_quirk(lab):
    profile = simulator.CannProfile("mine", "a test's", quirks=(quirks.TND_WITHOUT_MASK_AVERAGES,))
    arguments = lab.pack(lab.ragged([2], [90]), "TND")
    right, _ = lab.call(arguments)
    with simulator.use_profile(profile):
        assert not torch.equal(lab.call(arguments)[0], right)
