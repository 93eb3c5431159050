"""The curves of a report: logged scalars over the training step.

Usage:
  html = "".join(curves(runs))
"""

from collections.abc import Iterable, Sequence
import html
import re

from shortcut_tpu.observability import html_elements
from shortcut_tpu.observability.charts import Line, chart
from shortcut_tpu.observability.dashboard import CHARTS
from shortcut_tpu.observability.summary import DISTANCE, Summary

_SECTIONS = {"train": "Training", "perf": "Performance", "eval": "Evaluation"}
_LEVELS = re.compile(r"train/loss_level_\d+")


def curves(runs: Sequence[Summary]) -> list[str]:
    """Charts in sections by what stands before a tag's slash; what stayed at 0 in words."""
    tags = {tag for run in runs for tag, values in run.record.scalars.items() if values}
    tags = {tag for tag in tags if not DISTANCE.fullmatch(tag)}
    silent = {tag for tag in tags if not any(any(_values(run, tag)) for run in runs)}
    groups: dict[str, list[str]] = {}
    for tag in sorted(tags - silent, key=_by_number):
        groups.setdefault(tag.partition("/")[0], []).append(tag)
    sections = [
        html_elements.section(_SECTIONS.get(group, group), _charts(runs, groups[group]))
        for group in sorted(groups, key=lambda g: ([*_SECTIONS, g].index(g), g))
    ]
    if silent:
        names = ", ".join(f"<code>{html.escape(tag)}</code>" for tag in sorted(silent))
        sections.append(html_elements.section("At 0 all the time", f"<p>{names}</p>"))
    return sections


def _charts(runs: Sequence[Summary], tags: Sequence[str]) -> str:
    """A chart for what belongs together; of several runs, one for each tag, levels folded away."""
    drawn: list[tuple[str, list[str]]] = []
    for titles in CHARTS.values():
        for title, pattern in titles.items():
            together = [tag for tag in tags if re.fullmatch(pattern, tag)]
            if len(together) > 1 and len(runs) == 1:
                drawn.append((title, together))
            else:
                drawn += [(tag, [tag]) for tag in together]
    seen = {tag for _, together in drawn for tag in together}
    drawn += [(tag, [tag]) for tag in tags if tag not in seen]

    levels = [(title, t) for title, t in drawn if len(t) == 1 and _LEVELS.fullmatch(title)]
    others = [found for found in drawn if found not in levels]
    content = html_elements.grid([_chart(runs, *found) for found in others])
    if levels:
        content += html_elements.folded(
            "Loss by level", html_elements.grid([_chart(runs, *f) for f in levels])
        )
    return content


def _chart(runs: Sequence[Summary], title: str, tags: Sequence[str]) -> str:
    """Lines of several tags of one run, or of one tag of several runs."""
    caption = html.escape(title)
    if len(tags) > 1:
        names = [tag.partition("/")[2] for tag in tags]
        lines = [
            Line(name, _points(runs[0], tag), index)
            for index, (name, tag) in enumerate(zip(names, tags, strict=True))
        ]
        caption += f"<br>{html_elements.keys(names)}"
    else:
        lines = [
            Line(run.name, _points(run, tags[0]), index)
            for index, run in enumerate(runs)
            if run.record.scalars.get(tags[0])
        ]
    log_y = "loss" in title or "norm" in title
    return html_elements.figure(caption, chart(title, lines, "training step", log_y=log_y))


def _values(run: Summary, tag: str) -> Iterable[float]:
    return run.record.scalars.get(tag, {}).values()


def _points(run: Summary, tag: str) -> list[tuple[float, float]]:
    return [(float(step), value) for step, value in run.record.scalars[tag].items()]


def _by_number(tag: str) -> list[tuple[int, str]]:
    """Sorts level_2 before level_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tag)]
