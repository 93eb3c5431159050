"""The report of one or several runs as one HTML file that needs nothing else.

Usage:
  html = page([Summary(name="a", config=config, step=400, record=record, starts=starts), ...])
"""

import base64
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import html
import json
import re
from typing import Any

from ml_collections import ConfigDict

import shortcut_tpu
from shortcut_tpu.config import leaves
from shortcut_tpu.observability.charts import NUM_COLORS, Line, chart
from shortcut_tpu.observability.events import Record

_DISTANCE = re.compile(r"eval/(.+)@(\d+)")
_SHEET = re.compile(r"samples/(\d+)_steps")
# What a reader looks for first; the rest is alphabetical.
_FIRST = ("train/loss", "perf/goodput", "perf/mfu", "perf/images_per_second")
_SECTIONS = {"train": "Training", "perf": "Performance", "data": "Data", "eval": "Evaluation"}

Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A run, as a report shows it.

    Attributes:
      step: of the newest checkpoint, 0 if there is none.
      starts: environments of its starts, oldest first.
    """

    name: str
    config: ConfigDict
    step: int
    record: Record
    starts: Sequence[Mapping[str, Any]]

    def distances(self) -> dict[str, dict[int, dict[int, float]]]:
        """Distances by metric, number of sampling steps and training step."""
        found: dict[str, dict[int, dict[int, float]]] = {}
        for tag, values in self.record.scalars.items():
            match = _DISTANCE.fullmatch(tag)
            if match and values:
                found.setdefault(match[1], {})[int(match[2])] = values
        return {metric: dict(sorted(by_n.items())) for metric, by_n in found.items()}


def page(runs: Sequence[Summary]) -> str:
    """The whole file."""
    names = ", ".join(run.name for run in runs)
    body = [
        f"<h1>{'Runs' if len(runs) > 1 else 'Run'} {html.escape(names)}</h1>",
        _overview(runs),
        _keys(runs),
        _distances(runs),
        _sheets(runs),
        *_curves(runs),
        _environments(runs),
        _configs(runs),
        f"<footer>shortcut_tpu {shortcut_tpu.__version__}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(names)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Cells are HTML."""
    tag = ' class="numbers"' if numbers else ""
    parts = [f'<div class="scroll"><table{tag}><tr>']
    parts += [f"<th>{cell}</th>" for cell in head]
    parts.append("</tr>")
    for row in rows:
        parts += ["<tr>", *(f"<td>{cell}</td>" for cell in row), "</tr>"]
    return "".join([*parts, "</table></div>"])


def _key(index: int, run: Summary) -> str:
    dashed = " dashed" if index >= NUM_COLORS else ""
    mark = f'<svg class="mark" viewBox="0 0 20 8"><path class="line c{index % NUM_COLORS}{dashed}" '
    return f'{mark}d="M0 4H20"/></svg>{html.escape(run.name)}'


def _keys(runs: Sequence[Summary]) -> str:
    """Which colour is which run, in sight wherever the reader is."""
    if len(runs) == 1:
        return ""
    keys = "".join(f"<span>{_key(index, run)}</span>" for index, run in enumerate(runs))
    return f'<div class="keys">{keys}</div>'


def _overview(runs: Sequence[Summary]) -> str:
    rows = []
    for index, run in enumerate(runs):
        config, scalars = run.config, run.record.scalars
        last = {tag: list(values.values())[-1] for tag, values in scalars.items() if values}
        cells = [
            _key(index, run),
            html.escape(str(config.objective.name)),
            f"{run.step:,} of {config.train.num_steps:,}",
            f"{config.batch_size:,}",
            f"{config.model.width} x {config.model.depth}",
            _last(last, "train/loss", "{:.4g}"),
            _last(last, "perf/images_per_second", "{:,.0f}"),
            _last(last, "perf/mfu", "{:.1%}"),
            _last(last, "perf/goodput", "{:.1%}"),
        ]
        rows.append(cells)
    head = ["run", "objective", "step", "batch", "width x depth", "loss", "images/s", "MFU"]
    return _table([*head, "goodput"], rows)


def _last(last: Mapping[str, float], tag: str, text: str) -> str:
    return text.format(last[tag]) if tag in last else "–"  # noqa: RUF001


def _figure(title: str, svg: str) -> str:
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>" if content else ""


def _distances(runs: Sequence[Summary]) -> str:
    """For each metric a table and the figure of the newest evaluations, and how they came."""
    parts = []
    all_distances = [run.distances() for run in runs]
    for metric in sorted({metric for found in all_distances for metric in found}):
        of_runs = [found.get(metric, {}) for found in all_distances]
        counts = sorted({n for by_n in of_runs for n in by_n})
        newest = [{n: list(v.values())[-1] for n, v in by_n.items()} for by_n in of_runs]
        rows = [
            [
                _key(index, run),
                str(max(list(values)[-1] for values in by_n.values())) if by_n else "–",  # noqa: RUF001
                *(f"{last[n]:.4g}" if n in last else "–" for n in counts),  # noqa: RUF001
            ]
            for index, (run, by_n, last) in enumerate(zip(runs, of_runs, newest, strict=True))
        ]
        head = ["run", "training step", *(f"{n} step{'s' * (n > 1)}" for n in counts)]
        figures = []
        lines = [
            Line(run.name, [(float(n), last[n]) for n in counts if n in last], index)
            for index, (run, last) in enumerate(zip(runs, newest, strict=True))
            if last
        ]
        title = f"{metric} over sampling steps"
        svg = chart(title, lines, "sampling steps", log_x=True, log_y=True, x_ticks=counts)
        figures.append(_figure(title, svg))
        for n in counts:
            lines = [
                Line(run.name, _points(by_n[n]), index)
                for index, (run, by_n) in enumerate(zip(runs, of_runs, strict=True))
                if n in by_n
            ]
            title = f"{metric}@{n} while training"
            figures.append(_figure(title, chart(title, lines, "training step", log_y=True)))
        table = _table(head, rows, numbers=True)
        parts.append(
            _section(f"Distance: {metric}", f'{table}<div class="grid2">{"".join(figures)}</div>')
        )
    return "".join(parts)


def _points(values: Mapping[int, float]) -> Points:
    return [(float(step), value) for step, value in values.items()]


def _sheets(runs: Sequence[Summary]) -> str:
    """Sheets of the same noises, step counts below one another and runs side by side."""
    counts = sorted(
        {int(m[1]) for run in runs for tag in run.record.images if (m := _SHEET.fullmatch(tag))}
    )
    parts = []
    for n in counts:
        cells = []
        for index, run in enumerate(runs):
            found = run.record.images.get(f"samples/{n}_steps")
            if found:
                step, png = found
                data = base64.b64encode(png).decode()
                text = f"{n} step{'s' * (n > 1)}, training step {step}"
                caption = f"{_key(index, run)}, {text}" if len(runs) > 1 else text
                cells.append(
                    f"<figure><figcaption>{caption}</figcaption><img "
                    f'alt="{html.escape(run.name)}, {text}" src="data:image/png;base64,{data}">'
                    "</figure>"
                )
        parts.append("".join(cells))
    if len(runs) == 1:
        parts = ["".join(parts)]
    parts = [f'<div class="sheets">{part}</div>' for part in parts if part]
    return _section("Samples", "".join(parts))


def _curves(runs: Sequence[Summary]) -> list[str]:
    """A chart for each tag, in sections by what stands before its slash."""
    tags = {tag for run in runs for tag, values in run.record.scalars.items() if values}
    tags = {tag for tag in tags if not _DISTANCE.fullmatch(tag)}
    order: Callable[[str], tuple[int, str]] = lambda tag: (  # noqa: E731
        _FIRST.index(tag) if tag in _FIRST else len(_FIRST),
        tag,
    )
    groups: dict[str, list[str]] = {}
    for tag in sorted(tags, key=order):
        groups.setdefault(tag.partition("/")[0], []).append(tag)
    sections = []
    for group in sorted(groups, key=lambda g: ([*_SECTIONS, g].index(g), g)):
        figures = []
        for tag in groups[group]:
            lines = [
                Line(run.name, _points(run.record.scalars[tag]), index)
                for index, run in enumerate(runs)
                if run.record.scalars.get(tag)
            ]
            log_y = "loss" in tag or tag.endswith("norm")
            figures.append(_figure(tag, chart(tag, lines, "training step", log_y=log_y)))
        content = f'<div class="grid2">{"".join(figures)}</div>'
        sections.append(_section(_SECTIONS.get(group, group), content))
    return sections


def _environments(runs: Sequence[Summary]) -> str:
    rows = []
    for index, run in enumerate(runs):
        for start in run.starts:
            known = ("step", "time", "processes", "devices", "device_kind")
            packages = ", ".join(f"{k} {v}" for k, v in start.items() if k not in known)
            cells = [html.escape(str(start.get(name, ""))) for name in known]
            rows.append([_key(index, run), *cells, html.escape(packages)])
    head = ["run", "from step", "time", "processes", "devices", "kind", "packages"]
    return _section("Environment of each start", _table(head, rows)) if rows else ""


def _configs(runs: Sequence[Summary]) -> str:
    """The keys in which the runs differ, then each config whole."""
    parts = []
    flat = [dict(leaves(run.config)) for run in runs]
    keys = sorted({key for values in flat for key in values})
    rows = []
    for key in keys:
        values = [json.dumps(found.get(key), default=str) for found in flat]
        if len(set(values)) > 1:
            rows.append([f"<code>{html.escape(key)}</code>", *(html.escape(v) for v in values)])
    if rows:
        head = ["key", *(_key(index, run) for index, run in enumerate(runs))]
        parts.append("<h3>Where they differ</h3>" + _table(head, rows))
    for index, run in enumerate(runs):
        text = html.escape(json.dumps(run.config.to_dict(), indent=2, sort_keys=True))
        parts.append(f"<details><summary>{_key(index, run)}</summary><pre>{text}</pre></details>")
    return _section("Config", "".join(parts))


_STYLE = """
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
footer { margin-top: 32px; color: var(--soft); font-size: 13px; }
.keys { position: sticky; top: 0; background: var(--paper); padding: 6px 0; font-size: 14px; }
.keys span { margin-right: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
.grid2 { display: grid; gap: 14px 22px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.sheets { display: flex; flex-wrap: wrap; gap: 14px; margin-bottom: 14px; }
.sheets figure { flex: 0 1 auto; max-width: 100%; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; font-weight: 500; margin-bottom: 2px; overflow-wrap: anywhere; }
figure > svg, img { width: 100%; height: auto; display: block; }
img { width: auto; max-width: 100%; image-rendering: pixelated; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
circle.line { fill: var(--paper); }
.dashed { stroke-dasharray: 5 3; }
.mark { width: 20px; height: 8px; margin-right: 6px; vertical-align: middle; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
pre { overflow-x: auto; font-size: 13px; }
summary { cursor: pointer; padding: 4px 0; }
"""
