"""A picture of a policy's ways through a task, by number of sampling steps.

Usage:
  Image.fromarray(ways_figure({1: states, 4: states}, task, repeats=8)).save("ways.png")
"""

from collections.abc import Mapping

import numpy as np

from data_pipeline.tasks import Task


def ways_figure(ways: Mapping[int, np.ndarray], task: Task, repeats: int) -> np.ndarray:
    """A column a step count and a row a start; ways that miss the goal in red -> [H, W, 3] uint8.

    Args:
      ways: by step count, states [starts * repeats, T, S], those from one start together.
      task: what the states are of.
      repeats: ways from each start.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    rows = len(next(iter(ways.values()))) // repeats
    figure = Figure(figsize=(2.6 * len(ways), 2.6 * rows), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(ways), sharex=True, sharey=True, squeeze=False)
    for column, (num_steps, states) in enumerate(ways.items()):
        for row in range(rows):
            panel = panels[row, column]
            group = states[row * repeats : (row + 1) * repeats]
            for body, color in zip(task.bodies, ("tab:blue", "tab:gray"), strict=True):
                at = slice(body.column, body.column + 2)
                for way in group:
                    reached = task.success(way[-1:])[0]
                    panel.plot(*way[:, at].T, color=color if reached else "tab:red", lw=0.8)
                panel.add_patch(Circle(tuple(group[0, 0, at]), body.radius, color=color, alpha=0.4))
            panel.add_patch(Circle(task.goal, task.bodies[-1].radius, fill=False, ls="--"))
            panel.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
        panels[0, column].set_title(f"{num_steps} step{'s' if num_steps > 1 else ''}")
    figure.supxlabel("pusher blue, block grey, goal dashed; red: the goal was missed", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
