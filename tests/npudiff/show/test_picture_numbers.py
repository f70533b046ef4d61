"""Pictures as numbers: what is written is drawn again, and nothing else is."""

from __future__ import annotations

import json

import pytest
import torch

from npudiff.model.component import OutputComparison
from npudiff.show.finding import keep_findings
from npudiff.show.picture import MAX_BYTES, PICTURE_FILE, coarser, drawn, grid_of, read_pictures, write_pictures


@pytest.fixture
def grid():
    ratio = torch.tensor([[0, 0.2, 0.3], [0.7, 5, 50], [1e6, 0, 2.0]], dtype=torch.float64)
    bound = torch.tensor([[1, 1, 1], [1, 1, 1], [1, float("inf"), 1.0]], dtype=torch.float64)
    output = OutputComparison("y<b>", ratio=ratio, actual=ratio, value=ratio, bound=bound)
    return grid_of(output, {"request": torch.tensor([0, 0, 1])[:, None], "head": torch.tensor([0, 1, 1])})


def test_what_is_written_is_drawn_again(grid, tmp_path):
    write_pictures(tmp_path, [("as it was found", grid), ("the smallest case", grid)])
    assert [path.name for path in tmp_path.iterdir()] == [PICTURE_FILE]
    (caption, again), (second, _) = read_pictures(tmp_path)
    assert (caption, second) == ("as it was found", "the smallest case")
    assert again.levels.tolist() == grid.levels.tolist() == [[0, 1, 2], [3, 4, 5], [6, -1, 4]]
    assert drawn(again) == drawn(grid)
    assert "y&lt;b&gt;: 4 of 9 elements" in drawn(again)


def test_without_pictures_there_is_no_file(grid, tmp_path):
    write_pictures(tmp_path, [("x", grid)])
    write_pictures(tmp_path, [])
    assert not list(tmp_path.iterdir())
    assert read_pictures(tmp_path) == []


def test_a_coarser_picture_shows_the_worst(grid):
    assert coarser(grid, 1).levels.tolist() == [[6]]
    assert coarser(grid, 3).levels.tolist() == grid.levels.tolist()
    assert coarser(grid, 1).elements == (3, 3)


def test_a_second_picture_has_names_of_its_own(grid):
    assert 'id="unspecified"' in drawn(grid)
    assert 'id="unspecified-2"' in drawn(grid, 2)
    assert "url(#unspecified)" not in drawn(grid, 2)


def test_a_finding_keeps_its_pictures(toy, tmp_path):
    from npudiff.model.job import Budget
    from npudiff.run.engine import run_job

    outcome = run_job(toy.job(toy.wrong_above(100)), Budget(seed=1))
    ((_, folder),) = keep_findings(outcome, tmp_path)
    pictures = read_pictures(folder)
    assert pictures
    for number, (caption, grid) in enumerate(pictures):
        assert drawn(grid, number) in (folder / "finding.html").read_text(encoding="utf-8")
        assert caption.startswith("y, ")


VALID = {"caption": "x", "title": "t", "levels": ["01"], "elements": [1, 2], "borders": {}, "sides": {}, "labels": []}


def put(folder, change, **outer):
    content = {"schema_version": 1, "pictures": [{**VALID, **change}], **outer}
    (folder / PICTURE_FILE).write_text(json.dumps(content))


def test_the_smallest_valid_one_is_read(tmp_path):
    put(tmp_path, {})
    assert len(read_pictures(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"levels": []}, {"levels": [""]}, {"levels": ["01", "0"]}, {"levels": ["0<"]}, {"levels": ["07"]},
        {"levels": "01"}, {"levels": [1]}, {"levels": ["0" * 97]}, {"levels": ["0"] * 97}, {"elements": [1]},
        {"elements": [1, 1]}, {"elements": [True, 2]}, {"elements": [1, 2.0]}, {"elements": [1, 10**30]},
        {"borders": {"<script>": [1]}}, {"borders": {"request": [0]}}, {"borders": {"request": [2]}},
        {"borders": {"request": [1] * 25}}, {"borders": []}, {"sides": {"head": ["1"]}}, {"sides": {"head": [3]}},
        {"labels": ["x"] * 26}, {"labels": [1]}, {"title": 1}, {"caption": None}, {"caption": []},
    ],
)  # fmt: skip
def test_what_npudiff_does_not_write_is_no_picture(tmp_path, change):
    put(tmp_path, change)
    assert read_pictures(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1, "pictures": 3}', "[" * 10**5, "\x00"])
def test_damage_is_no_picture(tmp_path, text):
    (tmp_path / PICTURE_FILE).write_text(text)
    assert read_pictures(tmp_path) == []


def test_links_large_files_and_other_versions_are_no_pictures(tmp_path):
    for version in (2, 0, True, 1.0, "1", None):
        put(tmp_path, {}, schema_version=version)
        assert read_pictures(tmp_path) == []
    put(tmp_path, {"caption": "x" * MAX_BYTES})
    assert read_pictures(tmp_path) == []
    put(tmp_path, {})
    (tmp_path / PICTURE_FILE).rename(tmp_path / "other")
    (tmp_path / PICTURE_FILE).symlink_to(tmp_path / "other")
    assert read_pictures(tmp_path) == []


def test_texts_are_no_html_and_have_an_end(tmp_path):
    put(tmp_path, {"title": "<script>\x1b", "labels": ["<b>" * 100], "caption": "x" * 600})
    ((caption, grid),) = read_pictures(tmp_path)
    assert len(caption) == 500
    text = drawn(grid)
    assert "<script>" not in text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert len(grid.labels[0]) == 40
