"""The reference of draft steps, by hand, and against the operator's documented example of the next verification."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from npudiff.device.ascend.draft_step import side_by_side, walked
from npudiff.properties.draft_step import DraftStepCase, Step, build_inputs
from npudiff.reference.draft_step import DraftStepInputs, draft_step


def step(**changes):
    """A draft of two of which one is accepted, a piece of a prompt, and a token; pages of four tokens."""
    given = DraftStepInputs(
        tokens=torch.tensor([10, 11, 12, 20, 21, 30]),
        positions=torch.tensor([5, 6, 7, 0, 1, 3]),
        sampled=torch.tensor([[11, 99, -1], [-1, -1, -1], [77, -1, -1]]),
        known=torch.tensor([0, 22, 0]),
        proposed=torch.tensor([[1, 2], [3, 4], [5, 6]]),
        lengths=torch.tensor([8, 2, 4]),
        block_table=torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        rows=(3, 2, 1),
        drafts=(2, 0, 0),
        page_size=4,
        limit=12,
    )
    return draft_step(replace(given, **changes))


def test_what_is_known_of_each_request():
    found = step()
    assert found["next_token"].value.tolist() == [99, 22, 77]
    assert found["rejected"].value.tolist() == [1, 0, 0]
    assert found["sample_row"].value.tolist() == [1, 4, 5]


def test_the_first_pass_is_shifted_inside_each_request_and_ends_with_the_next_token():
    found = step()["first_tokens"]
    assert found.value.tolist()[:2] == [11, 99]
    assert found.value.tolist()[3:] == [21, 22, 77]
    assert found.bound.isinf().tolist() == [False, False, True, False, False, False]  # a rejected draft is padding


def test_later_passes_are_one_token_of_each_request():
    found = step()
    assert found["step_positions"].value.tolist() == [[7, 2, 4]]  # 6 is the last position that counts
    assert found["step_lengths"].value.tolist() == [[8, 3, 5]]
    assert found["step_slots"].value.tolist() == [[2 * 4 + 3, 4 * 4 + 2, 8 * 4]]


def test_at_the_limit_nothing_is_written():
    found = step(limit=8, sampled=torch.tensor([[11, 12, 99], [-1, -1, -1], [77, -1, -1]]))
    assert found["step_positions"].value.tolist() == [[0, 2, 4]]
    assert found["step_lengths"].value.tolist() == [[1, 3, 5]]
    assert found["step_slots"].value[0, 0] == -1
    assert found["verify_slots"].bound[0].isinf().all()
    assert not bool(found["verify_tokens"].bound.any())


def test_the_target_verifies_the_next_token_and_the_drafts():
    found = step()
    assert found["verify_tokens"].value.tolist() == [[99, 1, 2], [22, 3, 4], [77, 5, 6]]
    assert found["verify_positions"].value.tolist() == [[7, 8, 9], [2, 3, 4], [4, 5, 6]]
    assert found["verify_slots"].value[0].tolist() == [11, 12, 13]
    assert found["verify_slots"].value[1].tolist() == [18, 19, 20]


def test_a_draft_is_verified_where_the_draft_model_wrote_it():
    inputs = build_inputs(DraftStepCase((Step("draft", 14, 4, 2), Step("token", 30, 1)), 3))
    found = draft_step(inputs)
    assert torch.equal(found["step_slots"].value.T, found["verify_slots"].value[:, :2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drafts": (3, 0, 0)}, "a token and its drafts"),
        ({"drafts": (2, -1, 0)}, "a token and its drafts"),
        ({"rows": (3, 2, 0)}, "are not 6 rows"),
        ({"rows": (3, 3, 0)}, "are not 6 rows"),
        ({"lengths": torch.tensor([2, 2, 4])}, "have a limit"),
        ({"lengths": torch.tensor([13, 2, 4])}, "have a limit"),
        ({"block_table": torch.ones(3, 2, dtype=torch.int64)}, "room for 8 tokens"),
        ({"known": torch.zeros(2)}, "known must be"),
        ({"sampled": torch.full((3, 3), -1)}, "were sampled behind"),
        ({"sampled": torch.tensor([[11, 99, -1], [1, 2, -1], [77, -1, -1]])}, "were sampled behind"),
    ],
)
def test_what_is_no_step_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        step(**changes)


@pytest.mark.parametrize("way", [side_by_side, walked], ids=["side by side", "walked"])
def test_both_ways_agree_where_something_is_said(way):
    inputs = build_inputs(
        DraftStepCase(
            (Step("draft", 15, 4, 1), Step("piece", 0, 5), Step("draft", 31, 3, 3), Step("prompt", 3, 2)),
            3,
            room_left=1,
        )
    )
    found = way(inputs)
    for name, expected in draft_step(inputs).items():
        said = expected.bound == 0
        assert torch.equal(found[name].double()[said], expected.value[said]), name
