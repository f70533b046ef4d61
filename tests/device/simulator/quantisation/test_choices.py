"""The choices of this family are fields of a profile, and the pessimistic one takes those that hurt a caller."""

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile
from npudiff.device.simulator.quantisation.choices import QuantisationChoices


def test_every_choice_has_a_default():
    choices = {field.name: field.default for field in dataclasses.fields(QuantisationChoices)}
    assert dataclasses.MISSING not in choices.values()
    for name in ("8.5", "9.0"):
        assert {choice: getattr(PROFILES[name], choice) for choice in choices} == choices


def test_the_pessimistic_profile_hurts():
    x = torch.tensor([[0.0, 0.0]], dtype=torch.float16)
    with use_profile("pessimistic"):
        assert math.isnan(torch.ops.npu.npu_dynamic_quant(x)[1].item())
        with pytest.raises(OperatorRejected, match="scales was float32; allowed: float16"):
            torch.ops.npu.npu_quantize(x, torch.ones(1), None, torch.qint8, -1, False)
