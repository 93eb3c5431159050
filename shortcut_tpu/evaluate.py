"""Scores a checkpoint at the given numbers of sampling steps, or a file of samples.

  python -m shortcut_tpu.evaluate --workdir=runs/digits --steps=1,4,128 --json=scores.json
  python -m shortcut_tpu.evaluate --workdir=RUN --protocol=adm --features=inception:WEIGHTS \\
      --reference=VIRTUAL_imagenet256_labeled.npz --num_samples=50000
  python -m shortcut_tpu.evaluate --samples=admnet_imagenet256.npz --protocol=adm \\
      --features=inception:WEIGHTS --reference=VIRTUAL_imagenet256_labeled.npz

By default samples come from the evaluation average of the newest checkpoint. Started again after a
kill, it continues where it was. On a pod every host runs this same command. Several protocols, such
as adm,fd_dinov2, take features and references in the same order. --held_out divides each distance
by that of other real images; FDr is the mean of these ratios (arXiv 2604.28190).
"""

from collections.abc import Mapping
import functools
import statistics
from typing import Any, NamedTuple

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict

from data_pipeline import staging
from data_pipeline.errors import UserError
from data_pipeline.progress import progress_bar
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.evaluation.distances import frechet_distance
from shortcut_tpu.evaluation.evaluator import Evaluator, make_evaluator, open_reference, table
from shortcut_tpu.evaluation.features import Features, load_features
from shortcut_tpu.evaluation.generator import Generator, make_generator
from shortcut_tpu.evaluation.images import one_mesh, record_sums, sample_sums
from shortcut_tpu.evaluation.protocols import PROTOCOLS, Protocol, get_protocol
from shortcut_tpu.evaluation.reference import Reference, load_reference
from shortcut_tpu.evaluation.sample_files import SampleReader, SampleWriter
from shortcut_tpu.evaluation.sums import Sums, distances
from shortcut_tpu.evaluation.unfinished import Unfinished
from shortcut_tpu.pod import distributed
from shortcut_tpu.runs import checksums
from shortcut_tpu.runs.loading import Run, load_run, require_steps

_BATCH = 256
_RECONSTRUCTION = "reconstruction"


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_string("samples", None, "npz of images to score instead of a run's samples.")
    command.define_json()
    with command.flag_group("Which samples"):
        flags.DEFINE_string("steps", "1,2,4,8,16,32,64,128", "Step counts to sample at.")
        flags.DEFINE_integer(
            "num_samples", None, "Samples a step count; the config's by default.", 2
        )
        flags.DEFINE_string("class_balance", None, "balanced, random or data; else the protocol's.")
        flags.DEFINE_integer(
            "seed", None, "Seed of the samples; the run's by default.", 0, 2**32 - 1
        )
        flags.DEFINE_string("save_samples", None, "npz for the samples of one step count.")
    with command.flag_group("How they are scored"):
        flags.DEFINE_string(
            "protocol",
            None,
            f"Comma-separated, of {', '.join(PROTOCOLS)}; the config's by default.",
        )
        flags.DEFINE_string(
            "features",
            None,
            "Weights of each, such as inception:FILE, or nothing; the config's by default.",
        )
        flags.DEFINE_string(
            "reference", None, "Statistics of real images for each; the config's by default."
        )
        flags.DEFINE_string("held_out", None, "Statistics of other real images for each: FDr.")
        flags.DEFINE_bool(
            _RECONSTRUCTION, False, "Score the decoded records too, which is the floor."
        )
    with command.flag_group("Which weights"):
        flags.DEFINE_integer("step", None, "Checkpoint to score; the newest by default.", 0)
        flags.DEFINE_string("ema", "evaluation", "Which average of the weights to score.")
    with command.flag_group("Guidance"):
        command.define_guidance()


def main() -> None:
    if flags.FLAGS.samples:
        score_file(flags.FLAGS.samples)
    else:
        score_run()


class Measure(NamedTuple):
    """What one protocol of the flags measures by; as the flags have them, "" for none."""

    protocol: str
    features: str
    reference: str
    held_out: str


def score_run() -> None:
    """Scores a checkpoint, as the flags say."""
    values = flags.FLAGS
    workdir = epath.Path(command.required("workdir", "the folder of the run to score"))
    steps = command.integers("steps")
    if values.save_samples and len(steps) > 1:
        raise UserError(f"--save_samples takes the samples of one step count, --steps={steps[0]}")
    distributed.initialize()
    distributed.first_does(command.require_places)
    run = load_run(workdir, values.step, values.ema)
    steps = require_steps(run.experiment.objective, steps)
    measures = _measures(run.experiment.config.evaluation)
    if values.save_samples and len(measures) > 1:
        raise UserError("--save_samples takes the samples of one --protocol")
    guidance = command.guidance(run.experiment.config.evaluation)
    generator = make_generator(run.experiment, run.autoencoder, values.seed, guidance)
    scored = [_score_by(measure, generator, run, workdir, steps) for measure in measures]
    results = [result for result, _ in scored]
    written = results[0] if len(results) == 1 else {"protocols": results}
    if values.held_out:
        ratios = [result["fdr"] for result in results]
        mean = {n: statistics.fmean(ratio[n] for ratio in ratios) for n in ratios[0]}
        say(f"FDr over {', '.join(m.protocol for m in measures)}", *table({"fdr": mean}))
        written = written | {"fdr": mean}
    if jax.process_index() == 0:
        command.write_json(written)
        for _, evaluator in scored:
            evaluator.unfinished.remove()


def _measures(evaluation: ConfigDict) -> list[Measure]:
    """A measure for each protocol of the flags, or of the config."""
    values = flags.FLAGS
    protocols = (values.protocol or evaluation.protocol).split(",")
    lists = {
        "features": values.features or evaluation.features,
        "reference": values.reference or evaluation.reference,
        "held_out": values.held_out or "",
    }
    parts = {
        name: text.split(",") if text else [""] * len(protocols) for name, text in lists.items()
    }
    for name, files in parts.items():
        if len(files) != len(protocols):
            raise UserError(
                f"--{name}={lists[name]}: {len(files)} for {len(protocols)} protocols; give one for"
                " each, comma-separated"
            )
    return [Measure(*each) for each in zip(protocols, *parts.values(), strict=True)]


def _score_by(
    measure: Measure, generator: Generator, run: Run, workdir: epath.Path, steps: tuple[int, ...]
) -> tuple[dict[str, Any], Evaluator]:
    """Scores by one protocol and says so; returns the figures, and what made them."""
    values = flags.FLAGS
    evaluation = run.experiment.config.evaluation
    if values.reconstruction and not measure.reference:
        raise UserError("--reconstruction compares with real images: give their --reference")
    evaluator = make_evaluator(
        generator,
        run.autoencoder,
        protocol=measure.protocol,
        num_samples=values.num_samples or evaluation.num_samples,
        features=measure.features,
        reference=measure.reference,
        balance=values.class_balance or evaluation.class_balance,
        unfinished=functools.partial(_unfinished, workdir, run),
    )
    real = _held_out_distance(evaluator, measure.held_out) if measure.held_out else None
    scores = _scores(evaluator, run, steps)
    protocol = evaluator.features.protocol
    main_scores = {k: v for k, v in scores[evaluator.metric].items() if k != _RECONSTRUCTION}
    ratios = {n: distance / real for n, distance in main_scores.items()} if real else {}
    say(
        f"step {run.step}, average {values.ema}, {evaluator.num_samples} samples,"
        f" {_balance_in_words(evaluator.facts, run.experiment.config.data.num_classes)}",
        *_remarks(protocol, evaluator.num_samples, evaluator.features, evaluator.reference),
        *_trained_on(protocol, run),
        *table(scores, evaluator.guidance),
    )
    result = _result(protocol, evaluator.num_samples, evaluator.features, evaluator.reference) | {
        "distances": {str(n): distance for n, distance in main_scores.items()},
        "scores": {name: {str(n): s for n, s in by.items()} for name, by in scores.items()},
        "class_balance": evaluator.facts["class_balance"],
        "seed": evaluator.facts["seed"],
        "guidance": evaluator.guidance.describe(main_scores),
        "guidance_interval": list(evaluator.guidance.interval),
        "step": run.step,
        "ema": values.ema,
    }
    return result | ({"held_out": real, "fdr": ratios} if real else {}), evaluator


def _held_out_distance(evaluator: Evaluator, path: str) -> float:
    """The distance of other real images to the reference's."""
    length = len(evaluator.reference.pool.mean)
    held_out = load_reference(path, evaluator.features, length)
    distance = frechet_distance(held_out.pool, evaluator.reference.pool)
    # Of the reference's own images it is what rounding leaves.
    if distance <= 1e-6 * evaluator.reference.pool.covariance.trace():
        raise UserError(f"--held_out={path}: no distance from the reference; give other images'")
    return distance


def _trained_on(protocol: Protocol, run: Run) -> list[str]:
    """A warning where samples were trained to score well by the same network."""
    networks = [get_protocol(name).network for name, _, _ in run.experiment.objective.judged_by]
    if protocol.network not in networks:
        return []
    return [
        f"this run was trained on distances by {protocol.network}: this one says nothing of its "
        "samples; score by another network"
    ]


def _scores(evaluator: Evaluator, run: Run, steps: tuple[int, ...]) -> dict[str, dict[Any, float]]:
    """Scores by name and number of steps, and the reconstruction's where it is asked for."""
    values = flags.FLAGS
    by_steps: dict[Any, dict[str, float]] = {}
    first = jax.process_index() == 0
    if values.reconstruction:
        by_steps[_RECONSTRUCTION] = _reconstruction(evaluator, run)
    writer = None
    if values.save_samples:
        shape = (evaluator.num_samples, *evaluator.image_shape)
        writer = SampleWriter(values.save_samples, shape, evaluator.unfinished.key, writes=first)
    total = evaluator.num_samples * sum(steps)
    with progress_bar("sampling steps", total if first else 0) as advance:
        for num_steps in steps:
            by_steps[num_steps] = evaluator.scores(run.params, num_steps, advance, writer)
    if writer and first:
        writer.finish()
        say(f"samples: {values.save_samples}")
    names = next(iter(by_steps.values()))
    return {name: {n: scores[name] for n, scores in by_steps.items()} for name in names}


def _reconstruction(evaluator: Evaluator, run: Run) -> dict[str, float]:
    """The distances of the run's records, decoded, to the real images: what no model can beat."""
    unfinished, first = evaluator.unfinished, jax.process_index() == 0
    limit, data = evaluator.num_samples, run.experiment.config.data

    def keep(sums: Sums) -> None:
        if first and unfinished.due():
            unfinished.save(_RECONSTRUCTION, sums)

    with progress_bar("records", limit if first else 0) as advance:
        sums = record_sums(
            staging.local(data.path, data.stage),
            run.autoencoder,
            evaluator.features,
            run.experiment.mesh,
            batch_size=_BATCH,
            limit=limit,
            vectors=evaluator.reference.vectors is not None,
            progress=advance,
            resumed=unfinished.load(_RECONSTRUCTION) if first else None,
            keep=keep,
        )
    if first:
        unfinished.save(_RECONSTRUCTION, sums)
    protocol = evaluator.features.protocol
    return distributed.from_first(distances(sums, evaluator.reference, protocol) if first else {})


def score_file(path: str) -> None:
    """Scores the images of an npz file, as the flags say."""
    values = flags.FLAGS
    protocol = get_protocol(command.required("protocol", f"one of {', '.join(PROTOCOLS)}"))
    statistics = command.required("reference", "an npz of statistics of real images")
    distributed.initialize()
    distributed.first_does(command.require_places)
    features = load_features(protocol, values.features or "")
    mesh = one_mesh()
    with SampleReader(path) as samples:
        count, shape = len(samples), tuple(samples.shape[1:])
    if count < 2:
        raise UserError(f"{path}: a covariance needs at least 2 images")
    reference = open_reference(statistics, features, shape, mesh)
    with progress_bar("images", count if jax.process_index() == 0 else 0) as advance:
        sums = sample_sums(path, features, mesh, batch_size=_BATCH, progress=advance)
    found = distances(sums, reference, protocol)
    say(
        f"{path}: {count} images",
        *_remarks(protocol, count, features, reference),
        *(f"{name:>16} {score:.5g}" for name, score in found.items()),
    )
    if jax.process_index() == 0:
        result = _result(protocol, count, features, reference)
        command.write_json(result | {"scores": found, "samples": path, "class_balance": "unknown"})


def _unfinished(workdir: epath.Path, run: Run, facts: Mapping[str, Any]) -> Unfinished:
    """Keeps sums for these parameters of this run."""
    checkpoint = checksums.digest_of(workdir, run.step)
    values = flags.FLAGS
    more = {"step": run.step, "ema": values.ema, "checkpoint": checkpoint}
    return Unfinished(workdir, {**facts, **more, "save_samples": values.save_samples or ""})


def _balance_in_words(facts: Mapping[str, Any], num_classes: int) -> str:
    if facts["class_balance"] == "random":
        return "labels drawn evenly"
    if facts["class_balance"] == "data":
        return "labels drawn from the records"
    share, rest = divmod(facts["num_samples"], num_classes)
    return f"{share} of each class" if not rest else "class-balanced to within one"


def _remarks(protocol: Protocol, count: int, features: Features, reference: Reference) -> list[str]:
    """What a reader of the numbers must know of them."""
    lines = [f"protocol {protocol.name}, against {reference.source}"]
    if features.digest:
        lines.append(f"weights: {features.known_as or f'unknown, SHA-256 {features.digest}'}")
    if features.remark:
        lines.append(f"not comparable with published numbers: {features.remark}")
    if protocol.num_samples not in (None, count):
        lines.append(
            f"not comparable with published numbers, which are of {protocol.num_samples} samples"
        )
    return lines


def _result(
    protocol: Protocol, count: int, features: Features, reference: Reference
) -> dict[str, Any]:
    """What identifies a number."""
    return {
        "metric": protocol.metric,
        "protocol": protocol.name,
        "num_samples": count,
        "protocol_num_samples": protocol.num_samples,
        "features": {
            "network": protocol.network,
            "digest": features.digest,
            "known_as": features.known_as,
        },
        "reference": reference.describe(),
    }


if __name__ == "__main__":
    command.run(main, define_flags)
