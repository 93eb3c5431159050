"""Draws a policy's trajectories through a task, a column for each number of sampling steps.

Usage:
  figure = trajectories_figure({1: states, 4: states}, task, repeats=8)
  Image.fromarray(figure).save("trajectories.png")
"""

from collections.abc import Mapping

import numpy as np

from data_pipeline.tasks import Task


def trajectories_figure(
    trajectories: Mapping[int, np.ndarray], task: Task, repeats: int
) -> np.ndarray:
    """A column for each step count, a row for each start; misses in red -> [H, W, 3] uint8.

    Args:
      trajectories: by step count, states [starts * repeats, T, S], grouped by start.
      task: the task that the states belong to.
      repeats: trajectories from each start.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    rows = len(next(iter(trajectories.values()))) // repeats
    figure = Figure(figsize=(2.6 * len(trajectories), 2.6 * rows), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, len(trajectories), sharex=True, sharey=True, squeeze=False)
    for column, (num_steps, states) in enumerate(trajectories.items()):
        for row in range(rows):
            panel = panels[row, column]
            group = states[row * repeats : (row + 1) * repeats]
            for body, color in zip(task.bodies, ("tab:blue", "tab:gray"), strict=True):
                at = slice(body.column, body.column + 2)
                for trajectory in group:
                    reached = task.success(trajectory[-1:])[0]
                    panel.plot(*trajectory[:, at].T, color=color if reached else "tab:red", lw=0.8)
                panel.add_patch(Circle(tuple(group[0, 0, at]), body.radius, color=color, alpha=0.4))
            panel.add_patch(Circle(task.goal, task.bodies[-1].radius, fill=False, ls="--"))
            panel.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
        panels[0, column].set_title(f"{num_steps} step{'s' if num_steps > 1 else ''}")
    figure.supxlabel("pusher blue, block grey, goal dashed; red: the goal was missed", fontsize=9)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
