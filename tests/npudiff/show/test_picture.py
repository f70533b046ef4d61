"""Pictures and pages of findings: cells, borders, and nothing that runs or leaves the page."""

from __future__ import annotations

import html.parser
import math
import re

import pytest
import torch

from npudiff.judge.compare import compare
from npudiff.model.component import OutputComparison
from npudiff.reference.bounds import Expected
from npudiff.show.finding import PAGE_FILE, keep_findings
from npudiff.show.picture import MOST_COLUMNS, MOST_ROWS, grid_of, picture

WHERE = {"request": torch.tensor([0, 0, 0, 1, 1, 2])[:, None], "dim": torch.arange(4)}


def output(ratio, bound=None):
    ratio = torch.as_tensor(ratio, dtype=torch.float64)
    bound = torch.ones_like(ratio) if bound is None else torch.as_tensor(bound, dtype=torch.float64)
    return OutputComparison("y", ratio=ratio, actual=ratio, value=ratio, bound=bound)


def test_cells_have_the_level_of_their_elements():
    grid = grid_of(output([[0, 0.2, 0.5, 1], [1.5, 10, 999, math.inf], [math.nan, 2000, 0.75, 0.25]]), {})
    assert grid.levels.tolist() == [[0, 1, 2, 3], [4, 4, 5, 6], [6, 6, 3, 1]]
    assert (grid.elements, grid.borders, grid.sides) == ((3, 4), {}, {})


def test_what_is_not_specified_is_no_level():
    assert grid_of(output([[0, 0], [5, 0]], [[1, math.inf], [1, 1]]), {}).levels.tolist() == [[0, -1], [4, 0]]


def test_borders_are_where_a_part_ends():
    grid = grid_of(output(torch.zeros(6, 4)), WHERE)
    assert grid.borders == {"request": [3, 5]}
    assert grid.labels == ("request 0", "request 1", "request 2")
    heads = {"head": torch.tensor([0, 0, 1, 1])}
    assert grid_of(output(torch.zeros(2, 4)), heads).sides == {"head": [2]}


def test_one_wrong_element_of_a_large_output_is_seen():
    ratio = torch.zeros(1000, 3, 500)
    ratio[777, 1, 433] = 5
    levels = grid_of(output(ratio), {}).levels
    assert levels.shape == (MOST_ROWS, MOST_COLUMNS)
    (place,) = (levels == 4).nonzero().tolist()
    assert place == [(777 * 3 + 1) * MOST_ROWS // 3000, 433 * MOST_COLUMNS // 500]
    assert int(levels.sum()) == 4


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 3, 4), (1, 1, 1, 5)])
def test_outputs_of_any_shape_have_a_picture(shape):
    drawn = picture(output(torch.full(shape, 2.0)), {})
    assert drawn.startswith("<svg")
    assert f"{max(1, math.prod(shape))} of {max(1, math.prod(shape))} elements beyond their bound" in drawn


@pytest.mark.parametrize("one", [output(torch.zeros(0, 4)), OutputComparison("y", problem="shape")])
def test_without_elements_there_is_none(one):
    assert picture(one, {}) == ""


def texts_of(svg):
    """Left end, height and content of each text."""
    return [
        (float(x), float(y), text) for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', svg)
    ]


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (2, 1), (6, 4), (96, 1), (300, 200)])
@pytest.mark.parametrize("parts", [1, 2, 5, 24])
def test_no_text_lies_on_another_or_outside(shape, parts):
    where = {"request": torch.arange(shape[0])[:, None] * parts // shape[0], "head": torch.arange(shape[1]) // 2}
    svg = picture(output(torch.full(shape, 2.0)), where)
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    texts = texts_of(svg)
    assert [text for _, _, text in texts if text.startswith("up to")]
    for x, y, text in texts:
        assert 0 <= x < width
        assert 8 <= y <= height - 4, text
    for number, (x, y, text) in enumerate(texts):
        for other_x, other_y, other in texts[:number]:
            assert abs(y - other_y) >= 11 or abs(x - other_x) >= 100, (text, other)


def test_labels_of_narrow_parts_do_not_lie_on_each_other():
    where = {"request": torch.tensor([0, 1, 2, *[3] * 93])[:, None]}
    svg = picture(output(torch.full((96, 4), 2.0)), where)
    labels = [(y, text) for _, y, text in texts_of(svg) if text.startswith("request")]
    assert [text for _, text in labels] == ["request 0", "request 3"]


def test_rows_and_columns_are_counted():
    words = [text for _, _, text in texts_of(picture(output(torch.full((1, 2), 2.0)), {}))]
    assert words[:2] == ["1 row", "2 columns"]


class Tags(html.parser.HTMLParser):
    """Names and attributes of all elements, and what was left open."""

    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def test_the_page_of_a_finding_shows_it_and_loads_nothing(toy, tmp_path):
    from npudiff.model.job import Budget
    from npudiff.run.engine import run_job

    outcome = run_job(toy.job(toy.wrong_above(100), describe=lambda case: HOSTILE), Budget(seed=1))
    ((finding, folder),) = keep_findings(outcome, tmp_path)
    text = (folder / PAGE_FILE).read_text(encoding="utf-8")
    tags = Tags(text).seen
    assert {name for name, _ in tags} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "table", "tbody", "tr", "th", "td"),
        *("code", "pre", "div", "wbr", "svg", "defs", "pattern", "rect", "path", "text"),
    }
    assert not [
        name for _, attributes in tags for name in attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert "&lt;script&gt;" in text
    assert finding.replay_command(folder) in text
    assert "default-src 'none'" in text
    assert re.search(r"\d+ of \d+ elements beyond their bound", text)


def test_a_picture_is_made_of_what_was_compared():
    value = torch.zeros(4, 8, dtype=torch.float64)
    actual = torch.zeros(4, 8)
    actual[2:] = 1
    (one,) = compare({"y": Expected(value, torch.full_like(value, 0.5), torch.float32)}, {"y": actual}).outputs
    assert grid_of(one, {"token": torch.arange(4)[:, None]}).levels.tolist() == [[0] * 8] * 2 + [[4] * 8] * 2
