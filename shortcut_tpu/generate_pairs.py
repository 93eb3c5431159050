"""Records a trained run's samples with their noises and labels, to train on.

  python -m shortcut_tpu.generate_pairs --workdir=runs/teacher --num_pairs=50000 --steps=128 \\
      --output=data/pairs

Pair i is a function of the run, the seed and i. On a pod every host runs this same command with an
--output that all hosts can reach; each host writes its own shards. Stopped at any moment and
started again on the same machines, it keeps the finished shards and writes the same bytes as an
unbroken run. A damaged shard of a finished folder is made again.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

from absl import flags
from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from data_pipeline import staging
from data_pipeline.atomic_files import require_place
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.errors import UserError
from data_pipeline.hosts import Hosts
from data_pipeline.manifest import Manifest, pair_fields
from data_pipeline.progress import progress_bar
from data_pipeline.resumable import ResumableFolder
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.generator import Generator, make_generator
from shortcut_tpu.evaluation.labels import balanced_labels_of
from shortcut_tpu.pod import distributed, partitioning
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.loading import Run, load_run, require_steps
from shortcut_tpu.sampling.guidance import Guidance
from shortcut_tpu.training.experiment import Experiment
from shortcut_tpu.training.flops import count_flops

# The first pair's number as a sample: no evaluation reaches it, so a student is never scored on the
# noises that it was trained on.
FIRST_PAIR = 2**31

# A shard is whole in memory before it is written, and what a kill loses at most: 128 MiB of
# ImageNet latents, some minutes of a host's work.
SHARD_RECORDS = 8192

# For the other hosts' notes to show up in a shared folder: all shards are written by then.
_STALL_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to make.

    Attributes:
      num_pairs: pairs over all hosts together; label i is i modulo the classes.
      steps: sampling steps of the teacher.
      seed: of the noises; the run's if None.
      guidance: strength of the teacher's classifier-free guidance; if None that of the run's
        evaluation at so many steps.
      shard_records: records a shard.
    """

    num_pairs: int
    steps: int
    seed: int | None = None
    guidance: float | None = None
    shard_records: int = SHARD_RECORDS


def generate(
    workdir: epath.Path, run: Run, output: epath.PathLike, asked: Asked
) -> tuple[Manifest, int]:
    """Makes the pairs that are not there yet; every process calls this.

    Args:
      workdir: the run's folder.
      run: from `load_run(workdir)`.
      output: a folder that all hosts see.
      asked: what to make.

    Returns:
      The manifest, and how many pairs had to be made.

    Raises:
      UserError: the run's data are missing, the folder holds something else or cannot be written,
        or a sample is not finite.
    """
    config = run.experiment.config
    seed = config.seed if asked.seed is None else asked.seed
    guidance = Guidance.of(config.evaluation)
    if asked.guidance is not None:
        guidance = dataclasses.replace(guidance, strength=asked.guidance, by_steps=())
    plan = _plan(workdir, run, asked, seed, guidance)
    hosts = Hosts(jax.process_index(), jax.process_count())
    folder = ResumableFolder(output, plan, asked.shard_records, hosts)
    manifest = plan
    with contextlib.ExitStack() as opened:

        def enter() -> None:
            opened.enter_context(folder)

        def finish() -> None:
            nonlocal manifest
            manifest = folder.finish(max_rejected=0, stall_seconds=_STALL_SECONDS)

        distributed.first_does(enter)
        if hosts.index > 0:
            enter()
        missing = _missing(folder)
        if missing:
            generator = Generator(run.experiment, run.autoencoder, guidance=guidance, seed=seed)
            _make(generator, run.params, folder, missing, plan, asked.steps)
            multihost_utils.sync_global_devices("pairs written")
        distributed.first_does(finish)
    return manifest, sum(len(folder.images(number)) for number in missing)


def flops(config: ConfigDict, asked: Asked) -> int:
    """Operations in the matrix products that it takes a run of this config to make the pairs."""
    experiment = Experiment.from_config(config, jax.devices())
    generator = make_generator(experiment, load_autoencoder(config.data.autoencoder))
    rows = partitioning.row_shards(experiment.mesh)
    index, label = np.zeros(rows, np.uint32), np.zeros(rows, np.int32)
    params = experiment.abstract_state.params
    program = _program(generator, asked.steps)
    return count_flops(program, params, index, label) * asked.num_pairs // rows


def _plan(workdir: epath.Path, run: Run, asked: Asked, seed: int, guidance: Guidance) -> Manifest:
    """The manifest to be, without its shards."""
    config = run.experiment.config
    data = Manifest.load(staging.local(config.data.path, config.data.stage))
    data.require_autoencoder(run.autoencoder.name, run.autoencoder.digest)
    try:
        teacher = checksums.digest(workdir / "checkpoints", run.step)
    except OSError as error:
        raise UserError(f"{workdir}: checkpoint {run.step} was not finished: {error}") from None
    return Manifest(
        fields=pair_fields(run.experiment.latent_shape),
        shards=(),
        autoencoder=data.autoencoder,
        preprocessing={
            "source": "pairs",
            "source_digest": teacher,
            "flips": False,
            "objective": run.experiment.objective.name,
            "step": run.step,
            "ema": run.ema,
            "steps": asked.steps,
            "guidance": guidance.at(asked.steps),
            "guidance_interval": list(guidance.interval),
            "seed": seed,
        },
        class_names=data.class_names,
        num_records=asked.num_pairs,
    )


def _missing(folder: ResumableFolder) -> list[int]:
    """The shards that are not done; each process looks at its part of them, all know the whole."""
    found = np.zeros(len(folder.numbers), np.int32)
    found[folder.missing()] = 1
    gathered = np.asarray(multihost_utils.process_allgather(found))
    return np.flatnonzero(gathered.reshape(-1, len(found)).any(0)).tolist()


def _make(
    generator: Generator,
    params: Any,
    folder: ResumableFolder,
    missing: list[int],
    plan: Manifest,
    num_steps: int,
) -> None:
    """Makes and writes the missing shards.

    All devices run one program in step; the rows of the global batch that lie on one host belong to
    its own shards. A batch starts with its shard, so that a record's place in the program, and with
    it its last bit, does not depend on where a run was broken.
    """
    mesh = generator.experiment.mesh
    shards = partitioning.row_shards(mesh)
    batch_size = max(generator.experiment.config.evaluation.batch_size // shards, 1) * shards
    start, stop = partitioning.local_rows(mesh, batch_size)
    size = stop - start
    # Hosts whose devices hold the same rows get the same results; the first of them writes.
    starts = np.asarray(multihost_utils.process_allgather(np.int32(start))).reshape(-1)
    writes = int(np.argmax(starts == start)) == jax.process_index()
    parts = np.array_split(missing, batch_size // size)
    schedules = [list(_batches(folder, part.tolist(), size)) for part in parts]
    mine, num_turns = schedules[start // size], max(len(part) for part in schedules)
    num_classes = generator.experiment.config.data.num_classes
    program = _program(generator, num_steps)

    def begin(turn: int) -> Any:
        """Starts a batch; a host that has nothing left repeats its last."""
        batch = mine[min(turn, len(mine) - 1)][1] if mine else range(1)
        indices = np.resize(np.arange(batch.start, batch.stop, dtype=np.uint32), size)
        rows = {"index": FIRST_PAIR + indices, "label": balanced_labels_of(indices, num_classes)}
        return program(params, **partitioning.to_global(mesh, rows, batch_size))

    total = sum(len(folder.images(number)) for number in missing)
    with progress_bar("pairs", total if jax.process_index() == 0 else 0) as advance:
        waiting = begin(0)
        records = np.empty(0, plan.record_dtype)
        for turn in range(num_turns):
            done, waiting = waiting, begin(turn + 1) if turn + 1 < num_turns else None
            if writes and turn < len(mine):
                number, batch = mine[turn]
                whole = folder.images(number)
                if batch.start == whole.start:
                    records = np.empty(len(whole), plan.record_dtype)
                place = slice(batch.start - whole.start, batch.stop - whole.start)
                _fill(records[place], done, batch, num_classes)
                if batch.stop == whole.stop:
                    folder.write(number, records, ())
            else:
                jax.block_until_ready(done)
            advance(sum(len(part[turn][1]) for part in schedules if turn < len(part)))


def _batches(folder: ResumableFolder, numbers: list[int], size: int) -> Iterator[tuple[int, range]]:
    """The shards one after the other, each in batches of at most `size` records."""
    for number in numbers:
        records = folder.images(number)
        for first in range(records.start, records.stop, size):
            yield number, range(first, min(first + size, records.stop))


def _program(generator: Generator, num_steps: int) -> Any:
    """Jitted (params, index [B], label [B]) -> noise and unscaled latents, [B, H, W, C] float16."""
    experiment = generator.experiment

    def pairs(params: Any, index: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The teacher starts from what is stored, so that the pair is one.
        noise = generator.noise(index).astype(jnp.float16)
        x1 = generator.from_noise(params, noise.astype(jnp.float32), index, label, num_steps)
        return noise, experiment.scaling.stored(x1).astype(jnp.float16)

    return jax.jit(pairs, out_shardings=partitioning.rows(experiment.mesh))


def _fill(records: np.ndarray, made: Any, batch: range, num_classes: int) -> None:
    """Puts this host's rows of a batch into records [n]; rows beyond n were padding."""
    for name, array in zip(("noise", "mean"), made, strict=True):
        by_row = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        rows = np.concatenate([np.asarray(by_row[first]) for first in sorted(by_row)])
        records[name] = rows[: len(records)]
        if not np.isfinite(records[name]).all():
            raise UserError(
                f"the {name} of a pair from number {batch.start} to {batch.stop - 1} is not a "
                "finite float16; did the teacher diverge?"
            )
    records["label"] = balanced_labels_of(np.arange(batch.start, batch.stop), num_classes)


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run that is the teacher.")
    flags.DEFINE_string("output", None, "Folder for the records, gs:// or on a shared disk.")
    flags.DEFINE_integer("num_pairs", 50_000, "Pairs, over all hosts together.", lower_bound=1)
    flags.DEFINE_integer("steps", 128, "The teacher's sampling steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Its classifier-free guidance; the config's by default.")
    flags.DEFINE_integer("seed", None, "Seed of the noises; the run's by default.", 0, 2**32 - 1)
    flags.DEFINE_integer("step", None, "Its checkpoint; the newest by default.", 0)
    flags.DEFINE_string("ema", "evaluation", "Which average of its weights.")
    flags.DEFINE_integer("shard_records", SHARD_RECORDS, "Records a shard.", lower_bound=1)


def main() -> None:
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run that is the teacher"))
    output = command.required("output", "the folder for the records")
    distributed.initialize()
    distributed.first_does(lambda: require_place("output", output, "folder"))
    run = load_run(workdir, values.step, values.ema)
    require_steps(run.experiment.objective, [values.steps])
    asked = Asked(
        num_pairs=values.num_pairs,
        steps=values.steps,
        seed=values.seed,
        guidance=values.guidance,
        shard_records=values.shard_records,
    )
    manifest, made = generate(workdir, run, output, asked)
    held = f"{manifest.num_records} pairs in {len(manifest.shards)} shard(s)"
    say(f"{output}: " + (f"made {made} of {held}" if made else f"already complete, {held}"))


if __name__ == "__main__":
    command.run(main, define_flags)
