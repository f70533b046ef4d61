"""Adapters of experts over ranks, on inputs that are legal and that no case has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.device import targets
from npudiff.device.ascend.expert_parallel import everywhere_composed
from npudiff.judge.compare import compare
from npudiff.model.component import Subject
from npudiff.properties.expert_parallel import ExpertParallelCase, component
from npudiff.run.ranks import with_ranks

SIM = with_ranks(targets.sim(None), 60.0)


@pytest.fixture(scope="module", autouse=True)
def ranks_end():
    """Those that were started here end here."""
    yield
    SIM.on_ranks.close()


@pytest.mark.parametrize("shape", [(6,), (6, 2)])
def test_a_mask_of_a_rank_without_tokens(shape):
    case = ExpertParallelCase(6, ranks=2, experts=4, top_k=2, padding="none", spread="one alone", global_rows=True)
    inputs = component.inputs(case)
    assert sorted(inputs.layout.rows) == [0, 6]
    mask = torch.ones(shape, dtype=torch.bool)
    mask[2] = False
    inputs = replace(inputs, mask=mask, real=mask.view(6, -1).all(dim=1))
    subject = Subject(component, everywhere_composed, SIM)
    assert compare(subject.expected(inputs), subject.run(inputs)).holds
