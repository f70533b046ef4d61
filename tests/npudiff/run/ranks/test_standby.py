"""Ranks of a process that has used its device: another one makes them, which was forked before."""

from __future__ import annotations

import pytest
import torch

from draws import drawn
from npudiff.judge.compare import compare
from npudiff.model.component import NotApplicable, Subject
from npudiff.model.constraints import Constraints
from npudiff.run import ranks as run_ranks
from npudiff.run.discovery import built_in_implementations, load_component, load_target

pytestmark = pytest.mark.virtual


def test_what_is_installed_runs_on_ranks_after_the_device_was_used_and_nothing_else_does(ranked):
    target = load_target("virtual", None)
    item = next(one for one in built_in_implementations() if one.component == "data_parallel_gather" and not one.wrong)
    component = load_component("data_parallel_gather")
    with target.activate():
        assert float(torch.ones(2).to(target.device).sum()) == 2.0
        assert run_ranks._has_used(target)
        for case in drawn(component, item.constraints.within(Constraints()), 3):
            inputs = component.inputs(case)
            subject = Subject(component, item, target)
            assert compare(subject.expected(inputs), subject.run(inputs)).holds
        with pytest.raises(NotApplicable, match="a process that has used its device: run it by itself"):
            ranked.subject(target=target).run(ranked.inputs(2))
