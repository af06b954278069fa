"""Pieces of the report page: tables, facts, pictures; every text is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { --ink: #26323d; --muted: #62707d; --line: #e1e6eb; --accent: #0b6fb8; --soft: #f5f7f9; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #eef1f4; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 20px 16px 60px; }
header h1 { margin: 8px 0 0; font-size: 1.7rem; line-height: 1.2; }
header p { margin: 2px 0 14px; color: var(--muted); overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 16px; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin: 0 0 16px; }
h2 { margin: 0 0 10px; font-size: 1.2rem; }
h3 { margin: 18px 0 6px; font-size: 1rem; }
p { margin: 0 0 10px; }
.verdict { border-left: 5px solid var(--accent); }
.verdict .lead { font-size: 1.25rem; font-weight: 650; line-height: 1.35; margin: 0 0 6px; }
.caution { background: #fff8e8; border-color: #f0dcae; }
.caution ul, .notes ul { margin: 0; padding-left: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 0 0 16px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; margin: 0 0 10px; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; font-size: .84rem; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 84px; }
table.dense { font-size: .87rem; } .dense th, .dense td { padding: 5px 7px; }
tr.strong td { font-weight: 650; background: #f0f7fd; }
p.muted { font-size: .92rem; }
td small, .muted { color: var(--muted); font-weight: 400; }
table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--muted); width: 34%; min-width: 120px; }
figure { margin: 14px 0 6px; }
figure img { display: block; width: 100%; min-width: 620px; height: auto; }
figcaption { color: var(--muted); font-size: .88rem; margin-top: 4px; }
pre { background: #1f2933; color: #eef3f7; border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; margin: 0 0 10px; }
details summary { cursor: pointer; font-weight: 600; margin: 0 0 8px; }
.bar { background: var(--soft); border-radius: 4px; height: 12px; min-width: 90px; }
.bar i { display: block; background: var(--accent); border-radius: 4px; height: 12px; min-width: 2px; }
.good { color: #17733f; } .bad { color: #b3261e; }
@media (max-width: 600px) {
  main { padding: 10px 8px 40px; } section { padding: 14px 12px; border-radius: 8px; }
  header h1 { font-size: 1.4rem; } th, td { padding: 5px 7px; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } nav { display: none; } }
"""


class Html(str):
    """Markup that is already escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` escaped, unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def small(value: object) -> Html:
    """Secondary text within a cell."""
    return Html(f"<small>{text(value)}</small>")


def join(parts: Sequence[object], separator: str = " ") -> Html:
    """Parts escaped and joined."""
    return Html(separator.join(text(part) for part in parts))


def section(anchor: str, title: str, *parts: str, kind: str = "") -> Html:
    """A card of the page; empty when it has no content."""
    body = "".join(parts)
    if not body:
        return Html("")
    css = f' class="{kind}"' if kind else ""
    heading = f"<h2>{text(title)}</h2>" if title else ""
    return Html(f'<section id="{anchor}"{css}>{heading}{body}</section>\n')


def table(
    head: Sequence[object],
    rows: Sequence[Sequence[object]],
    strong: Sequence[int] = (),
    dense: bool = False,
) -> Html:
    """A table that scrolls sideways on a narrow screen; rows numbered in `strong` stand out."""
    titles = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = []
    for place, row in enumerate(rows):
        css = ' class="strong"' if place in strong else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>")
    body = "".join(lines)
    css = ' class="dense"' if dense else ""
    content = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return Html(f'<div class="scroll"><table{css}>{content}</table></div>')


def facts(rows: Sequence[tuple[object, object]]) -> Html:
    """Names and values, one pair a row."""
    lines = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows)
    return Html(f'<table class="facts"><tbody>{lines}</tbody></table>')


def cards(pairs: Sequence[tuple[object, object]]) -> Html:
    """Large numbers with what they are."""
    boxes = "".join(
        f'<div class="card"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in pairs
    )
    return Html(f'<div class="cards">{boxes}</div>\n') if pairs else Html("")


def listing(items: Sequence[object]) -> Html:
    """A bulleted list; empty when there is nothing to list."""
    return Html("<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>") if items else Html("")


def paragraph(content: object, kind: str = "") -> Html:
    """A paragraph."""
    css = f' class="{kind}"' if kind else ""
    return Html(f"<p{css}>{text(content)}</p>")


def preformatted(content: str) -> Html:
    """Text in a fixed-width box."""
    return Html(f"<pre>{escape(content)}</pre>")


def folded(title: str, content: str) -> Html:
    """Content behind a title that opens it."""
    return Html(f"<details><summary>{text(title)}</summary>{content}</details>")


def picture(path: Path, title: str, caption: str) -> Html:
    """A PNG file embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return Html(
        f'<h3>{text(title)}</h3><figure><div class="scroll">{image}</div>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def document(title: str, content: str) -> str:
    """The whole page: one file, no scripts, nothing loaded from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>{content}</main></body></html>\n"
    )
