"""Writes the report of one or several runs as one self-contained HTML file.

Usage:
  html = page([read_summary("a", workdir), ...])
"""

import base64
from collections.abc import Mapping, Sequence
import html
import json
import re
from typing import Any

from configs import common
import shortcut_tpu
from shortcut_tpu.cli.config import leaves
from shortcut_tpu.observability import html_elements
from shortcut_tpu.observability.charts import Line, chart, in_steps
from shortcut_tpu.observability.curves import curves
from shortcut_tpu.observability.dashboard import telling
from shortcut_tpu.observability.summary import Summary

_SHEET = re.compile(r"samples/(\d+)_steps")
_SAME_NOISES = "samples/same_noises"
# Where a PNG file says how many pixels wide it is.
_PNG_WIDTH = slice(16, 20)


def page(runs: Sequence[Summary]) -> str:
    """The whole file."""
    names = ", ".join(run.name for run in runs)
    body = [
        f"<h1>{html.escape(names)}</h1>",
        _overview(runs),
        # Which colour is which run, in sight wherever the reader is.
        f'<div class="keys">{html_elements.keys([r.name for r in runs])}</div>' if runs[1:] else "",
        *_distances(runs),
        _sheets(runs),
        *curves(runs),
        _environments(runs),
        _configs(runs),
        f"<footer>shortcut_tpu {shortcut_tpu.__version__}</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(names)}</title><style>{html_elements.STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _overview(runs: Sequence[Summary]) -> str:
    rows = []
    for index, run in enumerate(runs):
        config, scalars = run.config, run.record.scalars
        last = {tag: list(values.values())[-1] for tag, values in scalars.items() if values}
        cells = [
            html_elements.key(index, run.name),
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
    return html_elements.table([*head, "goodput"], rows)


def _last(last: Mapping[str, float], tag: str, text: str) -> str:
    return text.format(last[tag]) if tag in last else html_elements.NONE


def _distances(runs: Sequence[Summary]) -> list[str]:
    """For each metric a table and a figure of the newest distances, and how they came."""
    while_training = [run.distances() for run in runs]
    metrics = {metric for found in while_training for metric in found}
    metrics |= {run.score.metric for run in runs if run.score}
    return [
        _distance(metric, runs, [found.get(metric, {}) for found in while_training])
        for metric in sorted(metrics)
    ]


def _distance(
    metric: str, runs: Sequence[Summary], while_training: Sequence[dict[int, dict[int, float]]]
) -> str:
    rows: list[tuple[str, str, dict[int, float]]] = []
    lines = []
    for index, (run, by_n) in enumerate(zip(runs, while_training, strict=True)):
        key, newest = html_elements.key(index, run.name), {}
        if by_n:
            step = max(list(values)[-1] for values in by_n.values())
            newest = {n: list(values.values())[-1] for n, values in by_n.items()}
            rows.append((key, f"{step:,}, while training", newest))
        if run.score and run.score.metric == metric:
            newest = run.score.distances
            rows.append((key, f"{run.score.step:,}, {run.score.num_samples:,} samples", newest))
        if newest:
            points = [(float(n), newest[n]) for n in sorted(newest)]
            lines.append(Line(run.name, points, index))
    counts = sorted({n for _, _, found in rows for n in found})
    cells = [
        [key, step, *(f"{found[n]:.4g}" if n in found else html_elements.NONE for n in counts)]
        for key, step, found in rows
    ]
    table = html_elements.table(["run", "training step", *map(in_steps, counts)], cells)

    title = f"{metric} over sampling steps"
    svg = chart(title, lines, "sampling steps", log_x=True, log_y=True, x_ticks=counts)
    figures = [html_elements.figure(html.escape(title), svg)]
    for n in sorted({n for by_n in while_training for n in by_n}):
        lines = [
            Line(run.name, [(float(step), value) for step, value in by_n[n].items()], index)
            for index, (run, by_n) in enumerate(zip(runs, while_training, strict=True))
            if n in by_n
        ]
        title = f"{metric}@{n} while training"
        svg = chart(title, lines, "training step", log_y=True)
        figures.append(html_elements.figure(html.escape(title), svg))
    return html_elements.section(f"Distance: {metric}", table + html_elements.grid(figures))


def _sheets(runs: Sequence[Summary]) -> str:
    """The same noises at each step count, then whole sheets; runs side by side."""
    found = {
        int(m[1]): tag for run in runs for tag in run.record.images if (m := _SHEET.fullmatch(tag))
    }
    captions = {_SAME_NOISES: "the same noises"} | {found[n]: in_steps(n) for n in sorted(found)}
    parts = []
    for tag, caption in captions.items():
        figures = []
        for index, run in enumerate(runs):
            if tag not in run.record.images:
                continue
            step, png = run.record.images[tag]
            text = f"{caption}, training step {step:,}"
            key = f"{html_elements.key(index, run.name)}" if len(runs) > 1 else ""
            data = base64.b64encode(png).decode()
            alt = html.escape(f"{run.name}, {text}")
            image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
            figures.append(_sheet(key + text, image, width=int.from_bytes(png[_PNG_WIDTH])))
        parts.append("".join(figures))
    if len(runs) == 1:
        parts = [parts[0], "".join(parts[1:])]
    rows = [f'<div class="sheets">{part}</div>' for part in parts if part]
    return html_elements.section("Samples", "".join(rows))


def _sheet(caption: str, image: str, width: int) -> str:
    """A figure that stays a little smaller than its picture where one more fits beside it."""
    style = f"flex: 1 1 {0.85 * width:.0f}px; max-width: {width}px"
    return f'<div style="{style}">{html_elements.figure(caption, image)}</div>'


def _environments(runs: Sequence[Summary]) -> str:
    """What all starts have in common in a sentence, and in what they differ in a table."""
    starts = [(index, run.name, start) for index, run in enumerate(runs) for start in run.starts]
    if not starts:
        return ""
    columns = {
        "step": "from step",
        "time": "time (UTC)",
        "processes": "processes",
        "devices": "devices",
    }
    columns["device_kind"] = "kind"
    names = list(dict.fromkeys(name for _, _, start in starts for name in start))
    common_values = {
        name: starts[0][2].get(name)
        for name in names
        if name not in columns and len({str(start.get(name)) for _, _, start in starts}) == 1
    }
    differing = [name for name in names if name not in columns and name not in common_values]
    rows = [
        [
            html_elements.key(index, run),
            *(_cell(start.get(name, html_elements.NONE)) for name in [*columns, *differing]),
        ]
        for index, run, start in starts
    ]
    head = ["run", *columns.values(), *map(html.escape, differing)]
    same = ", ".join(html.escape(f"{name} {value}") for name, value in common_values.items())
    return html_elements.section(
        "Environment of each start",
        html_elements.table(head, rows) + (f"<p>In all of them: {same}.</p>" if same else ""),
    )


def _cell(value: Any) -> str:
    """2026-01-02T03:04:05+00:00 is easier to read with less."""
    return html.escape(re.sub(r"^(\S{10})T(\S{8})\+00:00$", r"\1 \2", str(value)))


def _configs(runs: Sequence[Summary]) -> str:
    """The keys in which the runs differ, or one run from the defaults; then each config whole."""
    if len(runs) > 1:
        flat = [dict(leaves(run.config)) for run in runs]
        title = "Where they differ"
        head = ["key", *(html_elements.key(index, run.name) for index, run in enumerate(runs))]
    else:
        defaults = common.get_config()
        defaults.objective.name = runs[0].config.objective.name
        flat = [telling(runs[0].config), telling(defaults)]
        title, head = "Where it differs from configs/common.py", ["key", "here", "there"]
    rows = []
    for name in sorted({key for values in flat for key in values}):
        values = [json.dumps(found[name], default=str) if name in found else "" for found in flat]
        if len(set(values)) > 1:
            cells = (html.escape(value) if value else html_elements.NONE for value in values)
            rows.append([f"<code>{html.escape(name)}</code>", *cells])
    content = f"<h3>{title}</h3>{html_elements.table(head, rows)}" if rows else ""
    for index, run in enumerate(runs):
        text = html.escape(json.dumps(run.config.to_dict(), indent=2, sort_keys=True))
        content += html_elements.folded(
            f"All keys of {html_elements.key(index, run.name)}", f"<pre>{text}</pre>"
        )
    return html_elements.section("Config", content)
