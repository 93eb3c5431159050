"""Scores a checkpoint at any list of step counts.

  python -m shortcut_tpu.evaluate --workdir=runs/digits
  python -m shortcut_tpu.evaluate --workdir=runs/digits --steps=1,4,128 --json=scores.json

Samples come from the evaluation average of the newest checkpoint unless told otherwise. On a pod
every host runs this same command.
"""

from absl import flags
from etils import epath
import jax

from data_pipeline.progress import progress_bar
from shortcut_tpu import command, distributed
from shortcut_tpu.evaluation.evaluator import make_evaluator, table
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.loading import load_run, require_steps
from shortcut_tpu.observability.console import say


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("steps", "1,2,4,8,16,32,64,128", "Step counts to sample at.")
    flags.DEFINE_integer("num_samples", None, "Samples a step count; the config's by default.")
    flags.DEFINE_string("protocol", None, "Distance to measure; the config's by default.")
    flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.")
    flags.DEFINE_string("ema", "evaluation", "Which average of the weights to score.")
    command.define_json()


def main() -> None:
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run to score"))
    steps = command.integers("steps")
    distributed.initialize()
    run = load_run(workdir, values.step, values.ema)
    steps = require_steps(run.experiment.objective, steps)

    evaluation = run.experiment.config.evaluation
    evaluator = make_evaluator(
        make_generator(run.experiment, run.autoencoder),
        run.autoencoder,
        protocol=values.protocol or evaluation.protocol,
        num_samples=values.num_samples or evaluation.num_samples,
    )
    distances = {}
    total = evaluator.num_samples * sum(steps)
    with progress_bar("sampling steps", total if jax.process_index() == 0 else 0) as advance:
        for num_steps in steps:
            distances[num_steps] = evaluator.distance(run.params, num_steps, advance)
    say(
        f"step {run.step}, average {values.ema}, {evaluator.num_samples} class-balanced samples",
        *table(evaluator.metric, distances),
    )
    if jax.process_index() == 0:
        command.write_json(
            {
                "metric": evaluator.metric,
                "num_samples": evaluator.num_samples,
                "distances": {str(n): distance for n, distance in distances.items()},
                "step": run.step,
                "ema": values.ema,
            }
        )


if __name__ == "__main__":
    command.run(main, define_flags)
