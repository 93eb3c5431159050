"""Trains and scores methods with equal budgets, and prints a table and a figure.

  python -m shortcut_tpu.compare --config=digits --methods=all
  python -m shortcut_tpu.compare --config=digits --methods=shortcut,meanflow --seeds=3

All methods use the config's records, batch, optimizer, number of steps and network, except the two
methods with networks of their own and the learning rates in `comparison.learning_rates`. With a
config that takes the methods' recipes (configs/recipes.py), such as imagenet256_b, each method has
the optimizer, averages, numerics and guidance of its paper; batch and number of steps stay the
config's. A distillation spends half of its steps on its teacher, which is trained by flow matching
and shared by all distillations, as are the pairs that it makes. Started again with the same workdir
the comparison continues. A method that diverges is reported and does not stop the others.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from data_pipeline import staging
from data_pipeline.atomic_files import require_place, write_json, write_output
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from shortcut_tpu import generate_pairs
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.comparison import paper_claims, pictures
from shortcut_tpu.comparison.floor import real_floor
from shortcut_tpu.comparison.methods import method_config, training_flops, with_recipe
from shortcut_tpu.comparison.table import Row, table
from shortcut_tpu.evaluation.evaluator import make_evaluator
from shortcut_tpu.evaluation.generator import make_generator
from shortcut_tpu.evaluation.inputs import require_named
from shortcut_tpu.objectives import OBJECTIVES
from shortcut_tpu.observability.sheets import methods_figure, to_png
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.runs.skipping import Diverged
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.train import train
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.latents import with_statistics

_SCORES = "distances.json"
_REFERENCE = "flow_matching"


@dataclasses.dataclass(frozen=True)
class Training:
    """One of the trainings that make up a method's run.

    Attributes:
      config: what `train` runs.
      workdir: where.
    """

    config: ConfigDict
    workdir: epath.Path


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a method with one seed takes.

    Attributes:
      trainings: in their order; the last one's model is scored.
      pairs: what the first one's model makes for the last one; None where it needs none.
    """

    trainings: Sequence[Training]
    pairs: generate_pairs.Asked | None = None

    @property
    def scored(self) -> Training:
        return self.trainings[-1]

    def run(self) -> Any:
        """Trains what is not trained yet; returns the evaluation average of the last training.

        Raises:
          UserError: as `train` and `generate_pairs` do, or it was asked to end.
          Diverged: a training did.
        """
        for training in self.trainings:
            config = training.config
            if training is self.scored and self.pairs is not None:
                self._make_pairs()
            state = train(config, training.workdir)
            if int(state.step) < config.train.num_steps:
                raise UserError(f"asked to end at step {int(state.step)}; start again to go on")
        return state.emas["evaluation"]

    def _make_pairs(self) -> None:
        assert self.pairs is not None
        teacher = self.trainings[0].workdir
        output = Path(self.scored.config.data.pairs)
        generate_pairs.generate(teacher, load_run(teacher), output, self.pairs)

    def flops(self) -> int:
        """Operations in the matrix products of all trainings, and of making the pairs."""
        flops = sum(training_flops(training.config) for training in self.trainings)
        if self.pairs is not None:
            flops += generate_pairs.flops(self.trainings[0].config, self.pairs)
        return flops


def plan(
    config: ConfigDict,
    name: str,
    seed: int,
    workdir: epath.Path,
    reference: ConfigDict | None = None,
) -> Plan:
    """A method's trainings, in folders of the workdir of the whole comparison.

    Args:
      config: of the comparison, with the method's recipe if it takes recipes.
      name: of the method.
      seed: of all its trainings.
      workdir: of the comparison.
      reference: the config with the recipe of a teacher; by default the same.
    """
    run = method_config(config, name, seed)
    objective, folder = OBJECTIVES[name], workdir / name / f"seed_{seed}"
    if not (objective.needs_teacher or objective.needs_pairs):
        return Plan([Training(run, folder)])
    teacher = method_config(config if reference is None else reference, _REFERENCE, seed)
    home = workdir / "teacher" / f"seed_{seed}"
    num_steps = run.train.num_steps
    with teacher.unlocked(), run.unlocked():
        teacher.train.num_steps = num_steps // 2
        run.train.num_steps = num_steps - num_steps // 2
        # The pairs' manifest names the checkpoint, so there must be one.
        teacher.checkpoint.every_steps = num_steps // 2
        if objective.needs_teacher:
            run.teacher.workdir = str(home)
        if objective.needs_pairs:
            run.data.pairs = str(workdir / "pairs" / f"seed_{seed}")
    pairs = None
    if objective.needs_pairs:
        made = config.comparison
        pairs = generate_pairs.Asked(num_pairs=made.num_pairs, steps=made.pair_steps)
    return Plan([Training(teacher, home), Training(run, folder)], pairs)


def score(plan: Plan, steps: Sequence[int]) -> dict[int, float] | None:
    """Trains and scores one method with one seed, unless that was done before.

    Args:
      plan: from `plan`.
      steps: numbers of sampling steps; those that the method cannot do are left out.

    Returns:
      The distance at each number of steps; None where the method diverged.

    Raises:
      UserError: the config cannot be run, the workdir holds another run, or it was asked to end.
    """
    config, workdir = plan.scored.config, plan.scored.workdir
    scores = workdir / _SCORES
    asked = {"config": json.loads(json.dumps(config.to_dict())), "steps": list(steps)}
    if scores.exists():
        found = json.loads(scores.read_text())
        if any(found[key] != value for key, value in asked.items()):
            raise UserError(f"{workdir}: scored with another config; choose another --workdir")
        distances = found["distances"]
        return distances and {int(n): distance for n, distance in distances.items()}
    try:
        params = plan.run()
        counts = OBJECTIVES[config.objective.name]().step_counts(steps)
        distances = _distances(config, params, counts, workdir)
    except (Diverged, np.linalg.LinAlgError) as error:
        say(f"{config.objective.name}, seed {config.seed}, diverged: {error}")
        distances = None
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(scores, asked | {"distances": distances})
    jax.clear_caches()
    return distances


def _distances(
    config: ConfigDict, params: Any, steps: Sequence[int], workdir: epath.Path
) -> dict[int, float]:
    autoencoder = load_autoencoder(config.data.autoencoder)
    config = with_statistics(config)
    experiment = Experiment.from_config(config, jax.devices(), autoencoder.scale)
    evaluator = make_evaluator(
        make_generator(experiment, autoencoder),
        autoencoder,
        protocol=config.evaluation.protocol,
        num_samples=config.evaluation.num_samples,
        features=config.evaluation.features,
        reference=config.evaluation.reference,
        balance=config.evaluation.class_balance,
    )
    distances = {num_steps: evaluator.distance(params, num_steps) for num_steps in steps}
    if not all(math.isfinite(distance) for distance in distances.values()):
        raise Diverged("its samples are not finite")
    records = staging.local(config.data.path, config.data.stage)
    pictures.keep(workdir, evaluator, params, steps, records, config.data)
    return distances


def parse_methods(text: str) -> list[str]:
    """The objectives that --methods names.

    Raises:
      UserError: one is unknown.
    """
    # Post-training starts from a run of one of the others.
    known = [name for name, objective in OBJECTIVES.items() if not objective.needs_judges]
    names = known if text == "all" else list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--methods: {unknown[0]!r} is none of {', '.join(known)}, or all")
    return names


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_string("methods", "all", "Objectives by name, such as shortcut,meanflow, or all.")
    flags.DEFINE_integer("seeds", 1, "Runs of each method, with seeds from the config's on.", 1)
    flags.DEFINE_string("steps", "1,2,4,8,32,128", "Step counts to sample at.")
    flags.DEFINE_string("workdir", None, "Folder of all runs; runs/compare_CONFIG by default.")
    command.define_json()


def main() -> None:
    config = command.config()
    names = parse_methods(flags.FLAGS.methods)
    steps = command.integers("steps")
    require_named(config)
    workdir = epath.Path(flags.FLAGS.workdir or f"runs/compare_{command.config_path().stem}")
    distributed.initialize()
    distributed.first_does(command.require_places)
    distributed.first_does(lambda: require_place("workdir", str(workdir), "folder"))

    teacher = with_recipe(config, _REFERENCE)
    reference = training_flops(method_config(teacher, _REFERENCE, config.seed))
    rows = []
    for name in names:
        own = with_recipe(config, name)
        plans = [
            plan(own, name, seed, workdir, teacher)
            for seed in range(config.seed, config.seed + flags.FLAGS.seeds)
        ]
        runs = [score(each, steps) for each in plans]
        rows.append(
            Row(
                name,
                runs,
                cost=plans[0].flops() / reference,
                phases=len(plans[0].trainings),
                learning_rate=plans[0].scored.config.optimizer.learning_rate,
                guidance=Guidance.of(plans[0].scored.config.evaluation),
            )
        )
        say(*table(config.evaluation.protocol, steps, rows))

    means = {row.name: {n: mean for n, (mean, _) in row.distances.items()} for row in rows}
    floor = real_floor(config)
    if floor is not None:
        say(
            f"floor: {config.evaluation.num_samples} fresh real images would score about "
            f"{floor:.3g}; what scores below has learned the records themselves"
        )
    say(*paper_claims.check(means, {row.name: row.phases for row in rows}))
    if jax.process_index() == 0:
        figure = workdir / "distances.png"
        page = methods_figure(config.evaluation.protocol, {k: v for k, v in means.items() if v})
        write_output(figure, to_png(page))
        say(f"figure: {figure}")
        first = {name: workdir / name / f"seed_{config.seed}" for name in names}
        samples = pictures.methods_sheet(first, steps, config.data)
        if samples is not None:
            write_output(workdir / "samples.png", to_png(samples))
            say(f"samples: {workdir / 'samples.png'}")
        command.write_json(
            {
                "metric": config.evaluation.protocol,
                "training_steps": config.comparison.num_steps or config.train.num_steps,
                "num_samples": config.evaluation.num_samples,
                "floor": floor,
                "methods": {row.name: row.to_json() for row in rows},
            }
        )


if __name__ == "__main__":
    command.run(main, define_flags)
