"""How the page of runs looks, beyond what all pages share."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --line: #ddd; --soft: #f3f3f1; --page: #fff; --tint: #fdf3f2; --dim: #666;
  --sea: #0b6e4f; --sand: #a66a00; --rose: #8a1c1c }
.skip { position: absolute; left: -999px } .skip:focus { position: static }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
.verdict { font-size: 1.2rem; padding: .6rem .9rem; border-left: 6px solid; background: var(--soft) }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.numbers div { background: var(--soft); padding: .5rem .9rem; border-radius: 6px }
.numbers dt { font-size: .85rem; color: var(--dim) } .numbers dd { margin: 0; font-size: 1.15rem; font-weight: 600 }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; list-style: none }
h2 { margin-top: 2.5rem; scroll-margin-top: 1rem } h3, h4 { margin: 0; font-size: 1rem } h4 small, td small, th small
{ font-weight: 400; color: var(--dim) }
summary { cursor: pointer; padding: .35rem 0 } summary h3 { display: inline }
.implementation { border-top: 1px solid var(--line); padding: .3rem 0; content-visibility: auto;
  contain-intrinsic-size: auto 60px } .inside { padding-left: 1rem; scroll-margin-top: 3rem }
.finding { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; margin: .6rem 0;
  content-visibility: auto; contain-intrinsic-size: auto 420px }
.finding h4 { margin-bottom: .4rem } .finding p { margin: .5rem 0 0 } figure { margin: .8rem 0 0 }
.finding rect { shape-rendering: crispEdges } .finding svg { max-width: 680px }
figcaption { margin-bottom: .4rem; overflow-wrap: anywhere }
.facts th { color: var(--dim); font-weight: 500 } .facts tr:last-child > * { border-bottom: 0 }
table.words code { overflow-wrap: anywhere } table.list th, table.margins th { white-space: normal; width: auto;
  overflow-wrap: anywhere; font-weight: 500; min-width: 9rem } table.list td { min-width: 4.5rem }
.list th { width: 22% }
table.words thead th { white-space: nowrap; color: var(--dim) }
.tall { max-height: 85vh; overflow: auto } .tall:focus-visible { outline: 3px solid #c97b18 }
.matrix thead th { z-index: 2; text-align: left } .matrix td, .matrix th { text-align: left }
.matrix tbody th { font-weight: 500; position: sticky; left: 0; background: var(--page) }
.matrix th.component { font-weight: 700; padding-top: .9rem; background: var(--page) }
.matrix td { white-space: nowrap } .phone { display: none }
.matrix td.yes { border-left: 4px solid var(--sea) } .matrix td.no { border-left: 4px solid var(--rose);
  background: var(--tint) } .matrix td.few { border-left: 4px solid var(--sand) } .matrix td.no a { color: inherit }
.scale { min-width: 13rem } .bar { display: block; height: .8rem; min-width: 2px; border-radius: 2px;
  background: var(--sea); print-color-adjust: exact; -webkit-print-color-adjust: exact }
.ticks { display: flex; justify-content: space-between } .margins td:nth-child(2), .margins td:nth-child(3)
{ white-space: nowrap } .margins td:last-child { min-width: 20rem }
.scale { background: repeating-linear-gradient(90deg, transparent 0 calc(33.3% - 1px), var(--line) 0 33.3%)
  content-box } a:focus-visible, summary:focus-visible
{ outline: 3px solid #c97b18; outline-offset: 2px }
@media (prefers-color-scheme: dark) { :root { --line: #3a3d40; --soft: #23262a; --page: #16181a; --tint: #2d1c1d;
  --dim: #a5a5a0; --sea: #7fd6b0; --sand: #ffc46b; --rose: #ff8a80 } }
@media (max-width: 600px) { body { margin: 1rem auto } .inside { padding-left: 0 } .phone { display: inline }
  table.words, .words tbody, .words tr, .words th, .words td { display: block; width: auto !important }
  .words thead { display: none } .words th, .words td { border: 0; padding: .1rem .3rem; min-width: 0 !important }
  .words tr { border-bottom: 1px solid var(--line); padding: .3rem 0 } .finding svg { min-width: 560px } }
@media print { .wide, .tall { max-height: none; overflow: visible }
  .list th, .list td, .margins th, .margins td { min-width: 0 !important; white-space: normal !important;
  overflow-wrap: break-word !important; font-size: .9em } .finding, .implementation { content-visibility: visible }
  .finding { break-inside: avoid } nav, .skip { display: none } thead th { position: static } }
"""
