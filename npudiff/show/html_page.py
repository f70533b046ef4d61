"""What all pages share: one file each, no network, no scripts, light and dark."""

from __future__ import annotations

import html

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem;
  color: #1c1c1c; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
a { color: #12558f } a:focus, summary:focus { outline: 3px solid #c97b18; outline-offset: 2px }
table { border-collapse: collapse; width: 100% } th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd;
  text-align: right; font-variant-numeric: tabular-nums } th:first-child, td:first-child { text-align: left }
table.words td, table.words th { text-align: left; vertical-align: top }
table.words td { overflow-wrap: anywhere } table.words th { white-space: nowrap; width: 1% }
thead th { position: sticky; top: 0; background: #fff }
code, pre { font: 13px/1.4 ui-monospace, monospace } pre { overflow-x: auto; padding: .6rem; background: #f3f3f1 }
.no { color: #8a1c1c; font-weight: 600 } .few { color: #8a5a00 } .yes { color: #0b6e4f }
.none { color: #777 } svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #333 }
svg text.small { font-size: 11px } .wide { overflow-x: auto }
@media (prefers-color-scheme: dark) {
  body, thead th { background: #16181a; color: #e8e6e3 } th, td { border-color: #3a3d40 } a { color: #8cc4f5 }
  pre { background: #23262a } svg text { fill: #d8d6d3 } .no { color: #ff8a80 } .few { color: #ffc46b }
  .yes { color: #7fd6b0 } .none { color: #999 } }
"""


def page_of(title: str, body: str, style: str = "") -> str:
    """Return a whole page.

    Parameters
    ----------
    title : str
        Text, not HTML.
    body : str
        HTML below the title.
    style : str
        CSS of this page, after what all share.
    """
    # Nothing a finding says may load or run anything, whoever wrote it.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}{style}</style></head><body><main><h1>{html.escape(title)}</h1>{body}</main></body></html>\n"
    )
