"""Trains a config; on a pod every host runs this same command.

  python -m shortcut_tpu.train --config=digits --workdir=runs/digits
  python -m shortcut_tpu.train --config=digits --workdir=runs/b --config.batch_size=256

Started again with the same workdir, it continues from the newest checkpoint, to more steps if the
config now asks for more. On SIGTERM to any of its processes, all save at the same step and end.
--profile_steps=100:105 profiles steps 100 to 104 on the first host, or on every host with
--profile_all_hosts, into WORKDIR/profile.
"""

import contextlib
import time

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict

from data_pipeline import exit_reason
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest, row_shapes
from data_pipeline.progress import counted, terminal_bars
from shortcut_tpu.cli import command
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli.console import duration, say, where_things_are
from shortcut_tpu.evaluation.inputs import require_named, require_readable
from shortcut_tpu.evaluation.judges import load_judges
from shortcut_tpu.evaluation.memory import require_host_memory
from shortcut_tpu.evaluation.periodic import PeriodicEvaluation
from shortcut_tpu.evaluation.protocols import get_protocol
from shortcut_tpu.observability import environment
from shortcut_tpu.observability.clock import CHECKPOINT, EVALUATION, INPUT, RESTORE, Clock
from shortcut_tpu.observability.goodput import Goodput
from shortcut_tpu.observability.outlook import Outlook
from shortcut_tpu.observability.parameters import arrays, overview
from shortcut_tpu.observability.profiling import Profiler, StepRange, step_marker
from shortcut_tpu.observability.reporter import Reporter
from shortcut_tpu.observability.speed import Speed
from shortcut_tpu.observability.watchdog import Watchdog
from shortcut_tpu.observability.writers import make_writer
from shortcut_tpu.pod import compile_cache, distributed, partitioning
from shortcut_tpu.rehearsal import by_default, rehearse
from shortcut_tpu.runs import skipping
from shortcut_tpu.runs import workdir as workdir_lib
from shortcut_tpu.runs.checkpointing import Checkpoints, still_waiting
from shortcut_tpu.runs.preemption import Preemption
from shortcut_tpu.runs.snapshots import Snapshots
from shortcut_tpu.runs.starting import initial_state, with_origin
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.input import global_batches, open_records
from shortcut_tpu.training.latents import with_statistics
from shortcut_tpu.training.train_state import TrainState


def train(
    config: ConfigDict,
    workdir: epath.Path,
    allow_config_change: bool = False,
    profile_steps: StepRange | None = None,
    rehearsing: bool = False,
) -> TrainState:
    """Runs or resumes training; returns the last state.

    Args:
      config: of the run.
      workdir: gets all that it leaves.
      allow_config_change: whether to go on where the config is not that of the checkpoint.
      profile_steps: what this process is to profile.
      rehearsing: whether a new run tries each of its acts once before it begins.

    Raises:
      UserError: the data are missing or of another shape, the config cannot be run here or is not
        that of the checkpoint, the workdir is in use, or training cannot go on.
    """
    with contextlib.ExitStack() as held:
        return _train(config, workdir, allow_config_change, profile_steps, rehearsing, held)


def _train(
    config: ConfigDict,
    workdir: epath.Path,
    allow_config_change: bool,
    profile_steps: StepRange | None,
    rehearsing: bool,
    held: contextlib.ExitStack,
) -> TrainState:
    started, clock = time.monotonic(), Clock()
    num_steps = config.train.num_steps
    if config.evaluation.every_steps:
        require_named(config)

    # ---------------------------------------------------------------- what guards and shows the run
    watchdog = held.enter_context(Watchdog(config.train.hang_seconds))
    preemption = held.enter_context(Preemption())
    held.enter_context(workdir_lib.claimed(workdir))
    profiler = held.enter_context(Profiler(workdir / "profile", profile_steps))
    bar = held.enter_context(terminal_bars(shown=jax.process_index() == 0))

    # ---------------------------------------------------------------- data
    autoencoder = load_autoencoder(config.data.autoencoder)
    require_host_memory(config, autoencoder)
    records, manifest = open_records(config, autoencoder)
    config = with_origin(with_statistics(config), workdir)
    if config.evaluation.every_steps:
        require_readable(config, autoencoder)

    # ---------------------------------------------------------------- model, objective, mesh
    judges = load_judges(config, autoencoder)
    experiment = Experiment.from_config(config, jax.devices(), autoencoder.scale, judges)
    say(*introduction(experiment, manifest))

    # ---------------------------------------------------------------- state, fresh or restored
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep, config)
    first_step = checkpoints.newest() or 0
    writer = make_writer(
        workdir,
        config,
        experiment.abstract_state.params,
        get_protocol(config.evaluation.protocol).distances,
    )
    evaluation = PeriodicEvaluation(
        experiment, autoencoder, writer, workdir / "evaluations", bar, watchdog.alive
    )
    if first_step:
        workdir_lib.check_config(checkpoints.config(first_step), config, allow_config_change)
        with clock.spending(RESTORE):
            state = checkpoints.restore(experiment.abstract_state, first_step)
        say(f"resumed from step {first_step} of {workdir / 'checkpoints'}")
    else:
        if rehearsing:
            rehearse(experiment, evaluation, records, workdir, watchdog.alive)
        state = initial_state(experiment, tell=say)
    snapshots = Snapshots(workdir, config)
    watchdog.alive()
    if jax.process_index() == 0:
        config_lib.save(config, workdir)
        environment.record(workdir, first_step)
    goodput = Goodput(workdir, first_step)
    if first_step < num_steps:
        goodput.record(first_step, clock.read().wall)
    else:
        say(f"nothing to train: step {first_step} is the last; another --workdir starts anew")

    # ---------------------------------------------------------------- input
    corrupt: set[int] = set()
    batches = held.enter_context(
        global_batches(
            config,
            records,
            experiment.mesh,
            start_step=first_step,
            num_steps=num_steps,
            corrupt=corrupt,
        )
    )

    # ---------------------------------------------------------------- loop
    if due(first_step, config.evaluation.every_steps, num_steps):
        # The run may have ended in the middle of it.
        with clock.spending(EVALUATION):
            evaluation.unless_done(first_step, state.emas["evaluation"])
    flops = experiment.model_flops(row_shapes(manifest.fields))
    speed = Speed(clock, first_step, config.batch_size, flops, experiment.mesh)
    report = Reporter(experiment, writer, speed, goodput, clock)
    outlook = Outlook(clock, first_step, config, flops, evaluation.flops)
    step, preempted, metrics = first_step, False, None
    for step in counted(bar, "steps", range(first_step + 1, num_steps + 1)):
        watchdog.alive()
        profiler.reached(step, metrics)
        with step_marker(step):
            with clock.spending(INPUT):
                batch = next(batches)
            state, metrics = experiment.train_step(state, batch, experiment.judges)
            clock.stepping()
        if step == first_step + 1:
            skipping.look_at_first(step, metrics, config.train.max_skipped)
        outlook.reached(step, metrics)
        preempted = preemption.reached(step) and step < num_steps
        save_due = preempted or due(step, config.checkpoint.every_steps, num_steps)
        log_due = step % config.train.log_every_steps == 0 or step == num_steps

        if (save_due or log_due) and metrics["skipped_in_row"] > config.train.max_skipped:
            skipping.stop(step, state, config, manifest.num_records, workdir, checkpoints)

        if log_due:
            counts = {
                "perf/checkpoint_failures": checkpoints.failures,
                "train/corrupt_records": len(corrupt),
            }
            report(step, state, metrics, counts)

        if save_due:
            with clock.spending(CHECKPOINT):
                # What led to a checkpoint will not be computed again.
                writer.flush()
                checkpoints.save(step, state)
        if snapshots.due(step):
            with clock.spending(CHECKPOINT):
                snapshots.save(step, state.emas)
        if preempted:
            break

        if due(step, config.evaluation.every_steps, num_steps):
            with clock.spending(EVALUATION):
                evaluation(step, state.emas["evaluation"])
        elif due(step, config.evaluation.sheet_every_steps, num_steps):
            with clock.spending(EVALUATION):
                evaluation.draw(step, state.emas["evaluation"])

    # ---------------------------------------------------------------- end
    watchdog.alive()
    with clock.spending(CHECKPOINT):
        checkpoints.close()
        snapshots.close()
    writer.close()
    if preempted:
        exit_reason.report(exit_reason.PREEMPTED)
    if step > first_step:
        goodput.record(step, clock.read().wall)
        say(goodput.summary())
    goodput.close()
    took = duration(time.monotonic() - started)
    if preempted:
        say(f"asked to end: saved step {step} after {took}; started again it goes on from there")
    else:
        say(f"trained to step {step} in {took}")
    return state


def due(step: int, every_steps: int, num_steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return every_steps > 0 and step > 0 and (step % every_steps == 0 or step == num_steps)


def introduction(experiment: Experiment, manifest: Manifest) -> list[str]:
    """What is about to run: a line on it, one on its recipe, and a table of its parameters."""
    config, mesh = experiment.config, experiment.mesh
    params = experiment.abstract_state.params
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return [
        f"{experiment.objective.name}: {parameters / 1e6:.3g}M parameters, batch "
        f"{config.batch_size}, {manifest.num_records} records; {jax.process_count()} processes, "
        f"{mesh.size} {mesh.devices.flat[0].device_kind} devices "
        f"({partitioning.in_words(mesh.shape)})",
        *config_lib.recipe_lines(config),
        *overview(arrays(params)),
    ]


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, TensorBoard, config.")
    flags.DEFINE_string(
        "init_from",
        None,
        "A run's workdir or a .safetensors file of `convert`, whose weights a new run starts from; "
        "the same as --config.init_from.path.",
    )
    flags.DEFINE_boolean("allow_config_change", False, "Go on although the config has changed.")
    flags.DEFINE_string(
        "profile_steps", None, "Steps to profile into WORKDIR/profile, START:STOP; STOP is not one."
    )
    flags.DEFINE_boolean(
        "rehearse",
        None,
        "Try three steps, a save, a restore and a batch of each evaluation before a new run, which "
        "they leave as it would be; by default on the hosts of a TPU pod.",
    )
    flags.DEFINE_boolean("profile_all_hosts", False, "Profile every host, and not only the first.")


def main() -> None:
    config = command.config()
    workdir = epath.Path(command.required("workdir", "the folder that will hold the run"))
    values = flags.FLAGS
    if values.init_from:
        if config.init_from.path not in ("", values.init_from):
            raise UserError("--init_from and --config.init_from.path differ; give one of them")
        config.init_from.path = values.init_from
    profile = StepRange.parse(values.profile_steps) if values.profile_steps else None
    distributed.initialize()
    compile_cache.enable(config.train.compile_cache)
    if jax.process_index() != 0 and not values.profile_all_hosts:
        profile = None
    rehearsing = by_default() if values.rehearse is None else values.rehearse
    state = train(config, workdir, values.allow_config_change, profile, rehearsing)
    if int(state.step) >= config.train.num_steps:
        say(*where_things_are(workdir, makes_images=not config.data.horizon))
    if still_waiting():
        distributed.end_now()


if __name__ == "__main__":
    command.run(main, define_flags)
