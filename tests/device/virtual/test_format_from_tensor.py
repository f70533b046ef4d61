"""Which of two casts ``npu_format_cast_`` with a tensor is on the virtual NPU, without torch_npu."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from npudiff.device.simulator.profiles import active_profile, use_profile
from npudiff.device.virtual import formats


@pytest.mark.parametrize("rule", ["copies_values", "takes_format"])
@pytest.mark.parametrize("from_tiles", [False, True])
@pytest.mark.parametrize("to_tiles", [False, True])
def test_the_format_is_taken_where_the_profile_says_so_and_the_formats_differ(monkeypatch, rule, from_tiles, to_tiles):
    source, target = torch.ones(2), torch.zeros(2)
    in_tiles = {id(source): from_tiles, id(target): to_tiles}
    monkeypatch.setattr(formats, "in_tiles", lambda tensor: in_tiles[id(tensor)])
    monkeypatch.setattr(formats, "storage_format", lambda tensor: 29 if in_tiles[id(tensor)] else 2)
    casts = []
    kernel = formats.format_cast_in_place_from(lambda tensor, acl_format, **_: casts.append(acl_format) or tensor)
    with use_profile(dataclasses.replace(active_profile(), format_cast_from_tensor=rule)):
        assert kernel(target, source) is target
    takes = rule == "takes_format" and from_tiles != to_tiles
    assert casts == ([29 if from_tiles else 2] if takes else [])
    assert target.tolist() == ([0.0, 0.0] if takes else [1.0, 1.0])
