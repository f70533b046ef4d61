"""Templates: what they escape and strip, and that none of them gets around it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from npudiff.show.rendering import TEMPLATES, SafeHtml, _environment, breakable, counted, duration, render

ROOT = Path(__file__).parents[3]
HTML = sorted(TEMPLATES.rglob("*.html"))
CSS = sorted(TEMPLATES.rglob("*.css"))


def rendered(source, **values):
    return _environment().from_string(source).render(values)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b>", "&lt;b&gt;"),
        ("\"'&", "&#34;&#39;&amp;"),
        ("{{ 7*7 }}{% raw %}", "{{ 7*7 }}{% raw %}"),
        ("\x1b[2J\x00\n", "?[2J??"),
        ("a\u202eb\u200b\u2066\ud800", "a?b???"),
        (Path("<b>\x1b"), "&lt;b&gt;?"),
        (SafeHtml("<svg></svg>"), "<svg></svg>"),
    ],
)
def test_values_are_escaped_and_stripped(text, shown):
    assert rendered("{{ value }}", value=text) == shown
    assert rendered("{% macro m(x) %}<i>{{ x }}</i>{% endmacro %}{{ m(value) }}", value=text) == f"<i>{shown}</i>"
    assert rendered("{% for one in [value] %}{{ one }}{% endfor %}", value=text) == shown


def test_what_is_not_there_is_an_error():
    from jinja2 import UndefinedError

    for source in ("{{ nothing }}", "{{ value.nothing }}", "{% if nothing %}{% endif %}", "{{ nothing|clip }}"):
        with pytest.raises(UndefinedError):
            rendered(source, value=object())


def test_a_page_without_its_data_is_an_error():
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError):
        render("finding.html", title="x")


def test_names_break_after_dots_and_underscores_and_are_escaped():
    assert breakable("a_b.<c>") == "a_<wbr>b.<wbr>&lt;c&gt;"
    assert rendered("{{ value|breakable }}", value="a.<\x1b>") == "a.<wbr>&lt;?&gt;"


def test_numbers_and_times():
    assert [counted(count, "finding") for count in (0, 1, 2000)] == ["0 findings", "1 finding", "2,000 findings"]
    assert [duration(seconds) for seconds in (1.51, 600, 3900)] == ["1.5 s", "10 min", "1 h 5 min"]


@pytest.mark.parametrize("path", HTML, ids=lambda path: path.name)
def test_no_template_gets_around_escaping(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*(safe|xmlattr|urlize|tojson)|autoescape|Markup|SafeHtml", source)
    assert not re.search(r"=\{\{", source)  # a value of an attribute stands in quotes
    assert not re.search(r"\son\w+=|<script|javascript:|https?://|@import|url\(", source)


@pytest.mark.parametrize("path", CSS, ids=lambda path: path.name)
def test_styles_load_nothing(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(|</|\{\{|\{%|\{#", source)


def test_html_is_marked_safe_in_these_places_only():
    made = {
        str(path.relative_to(ROOT / "npudiff"))
        for path in (ROOT / "npudiff").rglob("*.py")
        if re.search(r"SafeHtml\(|Markup\(|__html__", path.read_text(encoding="utf-8"))
    }
    assert made == {"show/rendering.py", "show/picture.py", "score/page.py"}


@pytest.mark.slow
def test_only_a_process_that_writes_a_page_imports_the_template_engine():
    code = (
        "import sys, npudiff.commands.check, npudiff.commands.report, npudiff.show.run_page.page, npudiff.score.page\n"
        "assert 'jinja2' not in sys.modules\n"
        "from npudiff.show.rendering import render, _environment\n"
        "render('score.html', title='x', about={}, scores=[], summaries={}, plot='', methods=[], rows=[])\n"
        "assert 'jinja2' in sys.modules and _environment() is _environment()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
