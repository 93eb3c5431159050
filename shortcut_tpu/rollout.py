"""Runs a trained policy in its simulated task and prints its success rate by sampling steps.

  python -m shortcut_tpu.rollout --workdir=runs/pusht_toy --steps=1,4,100 --episodes=200
  python -m shortcut_tpu.rollout --workdir=runs/pusht_toy --output=trajectories.png --json=s.json

Every step count starts from the same states and the same noises. By default the policy's weights
are the evaluation average of the newest checkpoint. --output draws some trajectories.
"""

import math
from typing import Any

from absl import flags
from etils import epath
import jax
import numpy as np

from data_pipeline.atomic_files import write_output
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.rollouts import FIRST_EPISODE, Outcome, Rollouts
from shortcut_tpu.observability.sheets import to_png
from shortcut_tpu.observability.trajectories import trajectories_figure
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs.loading import load_run, require_steps

# The picture shows this many starts, and this many trajectories from each.
_STARTS, _REPEATS = 3, 8


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("steps", "1,4,100", "Step counts to sample at.")
    flags.DEFINE_integer("episodes", 200, "Episodes a step count.", 1, 100_000)
    flags.DEFINE_integer(
        "action_steps", 8, "Actions of each chunk that are carried out.", lower_bound=1
    )
    flags.DEFINE_string("output", None, "A .png for some trajectories; none by default.")
    flags.DEFINE_integer("seed", None, "Of starts and noises; the run's by default.", 0, 2**32 - 1)
    flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.", 0)
    flags.DEFINE_string("ema", "evaluation", "Which average of the weights to use.")
    command.define_json()


def main() -> None:
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run that is the policy"))
    steps = command.integers("steps")
    distributed.initialize()
    distributed.first_does(command.require_places)
    run = load_run(workdir, values.step, values.ema)
    experiment = run.experiment
    seed = experiment.config.seed if values.seed is None else values.seed
    rollouts = Rollouts(experiment, seed=seed, action_steps=values.action_steps)
    steps = require_steps(experiment.objective, steps)

    episodes = FIRST_EPISODE + np.arange(values.episodes)
    start = rollouts.task.start(seed, episodes)
    outcomes = {n: rollouts(run.params, start, range(values.episodes), n) for n in steps}
    say(
        f"{workdir}: {experiment.objective.name}, step {run.step}, {values.episodes} episodes of "
        f"{rollouts.task.name}, {values.action_steps} actions a chunk",
        *table(outcomes),
    )
    if values.output:
        shown = np.repeat(start[:_STARTS], _REPEATS, axis=0)
        draws = values.episodes + np.arange(len(shown))
        trajectories = {n: rollouts(run.params, shown, draws, n).states for n in steps}
        if jax.process_index() == 0:
            figure = trajectories_figure(trajectories, rollouts.task, _REPEATS)
            write_output(values.output, to_png(figure))
        say(f"trajectories: {values.output}")
    if jax.process_index() == 0:
        command.write_json(
            {
                "task": rollouts.task.name,
                "objective": experiment.objective.name,
                "step": run.step,
                "ema": run.ema,
                "seed": seed,
                "episodes": values.episodes,
                "action_steps": values.action_steps,
                "scores": {str(n): _figures(outcome) for n, outcome in outcomes.items()},
            }
        )


def _figures(outcome: Outcome) -> dict[str, Any]:
    success = float(outcome.success.mean())
    return {
        "success": success,
        "success_error": math.sqrt(success * (1 - success) / len(outcome.success)),
        "distance": float(outcome.distance.mean()),
        "actions": float(outcome.steps.mean()),
    }


def table(outcomes: dict[int, Outcome]) -> list[str]:
    """Success with its standard error, mean distance at the end, mean actions, by steps."""
    lines = [f"{'steps':>5}{'success':>16}{'distance':>10}{'actions':>9}"]
    for n, outcome in outcomes.items():
        figures = _figures(outcome)
        success = f"{figures['success']:.3f} ± {figures['success_error']:.3f}"
        lines.append(f"{n:>5}{success:>16}{figures['distance']:>10.3f}{figures['actions']:>9.1f}")
    return lines


if __name__ == "__main__":
    command.run(main, define_flags)
