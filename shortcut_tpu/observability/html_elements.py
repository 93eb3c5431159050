"""HTML elements of a report: tables, figures, sections and the style sheet."""

from collections.abc import Sequence
import html

from shortcut_tpu.observability.charts import NUM_COLORS

NONE = "–"  # noqa: RUF001


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, all of them HTML."""
    parts = ['<div class="scroll"><table><tr>', *(f"<th>{cell}</th>" for cell in head), "</tr>"]
    for row in rows:
        parts += ["<tr>", *(f"<td>{cell}</td>" for cell in row), "</tr>"]
    return "".join([*parts, "</table></div>"])


def key(index: int, name: str) -> str:
    """A short line of a chart's colour, and what is drawn in it."""
    dashed = " dashed" if index >= NUM_COLORS else ""
    mark = f'<svg class="mark" viewBox="0 0 20 8"><path class="line c{index % NUM_COLORS}{dashed}" '
    return f'<span class="key">{mark}d="M0 4H20"/></svg>{html.escape(name)}</span>'


def keys(names: Sequence[str]) -> str:
    """The keys of several lines, one after the other."""
    return "".join(key(index, name) for index, name in enumerate(names))


def figure(caption: str, content: str) -> str:
    """Both are HTML."""
    return f"<figure><figcaption>{caption}</figcaption>{content}</figure>"


def grid(figures: Sequence[str]) -> str:
    """As many figures in a row as there is room for."""
    return f'<div class="grid">{"".join(figures)}</div>'


def section(title: str, content: str) -> str:
    """Nothing, where it has no content."""
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def folded(summary: str, content: str) -> str:
    """Content that shows when its summary is clicked; both are HTML."""
    return f"<details><summary>{summary}</summary>{content}</details>"


STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0;
  --c0: #0063a6; --c1: #c24e00; --c2: #007a55; --c3: #a6357f; --c4: #8a6d00; --c5: #5b5bd6; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ec; --soft: #9aa4af;
  --rule: #343b43; --c0: #5bb5f0; --c1: #ff9a52; --c2: #3fcf9b; --c3: #f08cc8; --c4: #e3c14b;
  --c5: #a5a5ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 16px; background: var(--paper);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 8px 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 32px 0 10px; border-top: 1px solid var(--rule); padding-top: 14px; }
h3 { font-size: 15px; margin: 16px 0 6px; }
p { margin: 6px 0 10px; max-width: 100ch; }
footer { margin-top: 32px; color: var(--soft); font-size: 13px; }
.keys { position: sticky; top: 0; background: var(--paper); padding: 6px 0; font-size: 14px; }
.key { margin-right: 16px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
.grid { display: grid; gap: 14px 22px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.sheets { display: flex; flex-wrap: wrap; gap: 14px; margin-bottom: 14px; }
.sheets > div { min-width: 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; font-weight: 500; margin-bottom: 2px; overflow-wrap: anywhere; }
figcaption .key { display: inline-block; max-width: 100%; font-weight: 400; margin-right: 10px; }
figure > svg { width: 100%; height: auto; display: block; }
img { max-width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.rule { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
circle.line { fill: var(--paper); }
.dashed { stroke-dasharray: 5 3; }
circle.dashed { stroke-dasharray: none; }
.mark { width: 20px; height: 8px; margin-right: 6px; vertical-align: middle; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
pre { overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; padding: 4px 0; }
"""
