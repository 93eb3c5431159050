"""Records an expert's demonstrations of a simulated task.

A record is an observation [O] and the chunk of actions [horizon, A] that the expert takes from
there. Where several trajectories are equally good, it tosses a coin for each chunk. Between records
its hand shakes, so that the records also show how to return from states beside the best trajectory.

Usage:
    $ python -m data_pipeline.demonstrate --task=pusht_toy --output=data/pusht_toy --episodes=1000
"""

from collections.abc import Sequence
import dataclasses

from absl import app, flags
from etils import epath
import numpy as np

from data_pipeline.atomic_files import failures, require_place
from data_pipeline.command_line import parse_flags, quiet_libraries, required
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.manifest import FILE_NAME, Manifest, demonstration_fields
from data_pipeline.records import write_shard
from data_pipeline.tasks import Task, load_task, uniforms

SHARD_RECORDS = 65536

# What is added to each number of the expert's action is within +- this.
_SHAKE = 0.8


def demonstrations(task: Task, seed: int, episodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the expert sees and does, up to the goal, in some episodes.

    Args:
        task: the task.
        seed: of starts, choices and shakes, which are functions of (seed, episode).
        episodes: [n], their numbers.

    Returns:
        Observations [records, O] and chunks of actions [records, horizon, A], both float32, one
        episode's records after the other's.
    """
    state, turns = task.start(seed, episodes), task.max_steps
    # A stream of its own, apart from that of the starts.
    draws = uniforms(seed + 2**63, episodes, 1 + turns + turns * task.action_size)
    way, tosses, shakes = np.split(draws, [1, 1 + turns], axis=1)
    shakes = _SHAKE * (2 * shakes.reshape(len(episodes), turns, task.action_size) - 1)
    seen, done, before = [], [], []
    for turn in range(turns):
        seen.append(task.observe(state))
        done.append(chunk(task, state, tosses[:, turn]))
        before.append(~task.success(state))
        # An episode has one way, or it would take long to get around.
        state = task.step(state, task.expert(state, way[:, 0]) + shakes[:, turn])
    # [n, turns, ...], of which those count that come before the goal.
    kept = np.stack(before, 1)
    return np.stack(seen, 1)[kept], np.stack(done, 1)[kept]


def chunk(task: Task, state: np.ndarray, toss: np.ndarray) -> np.ndarray:
    """The expert's next actions from some states, done with a steady hand: [n, horizon, A]."""
    actions = []
    for _ in range(task.horizon):
        actions.append(task.expert(state, toss))
        state = task.step(state, actions[-1])
    return np.stack(actions, 1).astype(np.float32)


def write(task: Task, seed: int, episodes: int, output: epath.Path) -> Manifest:
    """Writes the demonstrations of the first so many episodes, the manifest last.

    Raises:
        UserError: there are records already, or the folder cannot be written.
    """
    if (output / FILE_NAME).exists():
        raise UserError(f"{output}: has records already; choose another --output or delete it")
    observations, actions = demonstrations(task, seed, np.arange(episodes))
    shape = (task.horizon, task.action_size)
    plan = Manifest(
        fields=demonstration_fields(shape, task.observation_size),
        shards=(),
        # Actions are their own latents.
        autoencoder={
            "name": "identity",
            "digest": "identity",
            "scale": 1.0,
            "deterministic": True,
            "latent_shape": list(shape),
            "image_shape": list(shape),
        },
        preprocessing={
            "source": task.name,
            "source_digest": f"seed {seed}, {episodes} episodes",
            "flips": False,
        },
        class_names=(),
        num_records=len(actions),
    )
    records = np.empty(len(actions), plan.record_dtype)
    records["mean"], records["observation"] = actions, observations
    parts = np.split(records, range(SHARD_RECORDS, len(records), SHARD_RECORDS))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except failures() as error:
        raise UserError(f"{output}: cannot be made: {error}") from None
    names = [f"shard-{n:05d}-of-{len(parts):05d}.array_record" for n in range(len(parts))]
    shards = [write_shard(output / name, part) for name, part in zip(names, parts, strict=True)]
    manifest = dataclasses.replace(plan, shards=tuple(shards))
    manifest.save(output)
    return manifest


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}; see --help")
    quiet_libraries()
    values = flags.FLAGS
    output = required("output", "the folder for the records")
    require_place("output", output, "folder")
    manifest = write(load_task(values.task), values.seed, values.episodes, epath.Path(output))
    print(f"{output}: {manifest.num_records} records of {values.episodes} episodes")


if __name__ == "__main__":
    flags.DEFINE_string("task", "pusht_toy", "The task, a name of data_pipeline/tasks.")
    flags.DEFINE_string("output", None, "The folder for the records.")
    flags.DEFINE_integer("episodes", 1000, "How often the expert shows it.", 1)
    flags.DEFINE_integer("seed", 0, "Seed of starts, choices and shakes.", 0, 2**63 - 1)
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
