"""Imports published weights as a run, or exports a run's weights.

  python -m shortcut_tpu.convert --from=official --weights=FILE --config=imagenet256_b --workdir=DIR
  python -m shortcut_tpu.convert --from=dit --weights=DiT-XL-2-256x256.pt --config=imagenet256_xl \\
      --workdir=runs/dit
  python -m shortcut_tpu.convert --to=safetensors --workdir=runs/digits --output=w.safetensors
  python -m shortcut_tpu.convert --to=jax_export --workdir=runs/digits --steps=1,4 --output=DIR

--from=official reads a pickled checkpoint of shortcut-models without running the pickle.
--from=meanflow and --from=imf read the folder in the zip of a checkpoint of Gsunshine/meanflow and
Lyy-iiis/imeanflow. --from=dit and --from=sit read state dicts of facebookresearch/DiT and
willisma/SiT, or the `ema` of their training checkpoints. No tensor of a DiT tells the number of
heads: it is known for the published sizes, for others give --config.model.num_heads=N.
--from=safetensors reads what --to=safetensors wrote and needs no --config. Afterwards `evaluate`
and `sample` work as on a trained run.

--to=safetensors writes the weights with a card in JSON, --to=jax_export a folder with the sampler,
which needs only jax and numpy.
"""

from collections.abc import Callable
import os
from typing import Any, NamedTuple, TypeVar

from absl import flags
from etils import epath
import jax
from ml_collections import ConfigDict

from data_pipeline.atomic_files import require_place
from data_pipeline.errors import UserError
from data_pipeline.torch_archive import read_torch_checkpoint
from shortcut_tpu.cli import command
from shortcut_tpu.cli.console import say
from shortcut_tpu.conversion import imf, meanflow, official, torch_dit
from shortcut_tpu.conversion.artifact import write_artifact
from shortcut_tpu.conversion.foreign import Tensors, require
from shortcut_tpu.conversion.linen import read_linen
from shortcut_tpu.conversion.runs import make_run
from shortcut_tpu.models import NETWORKS, DiT, InContext, Model, Params
from shortcut_tpu.runs.loading import load_run
from shortcut_tpu.runs.tensors import card, read_tensors, write_tensors
from shortcut_tpu.training.experiment import Experiment

M = TypeVar("M", bound=Model)


class Trained(NamedTuple):
    """How checkpoints of a training are read, which hold weights and their average.

    Attributes:
      configure: makes a config one of their network.
      read: path -> step, weights, average.
      facts: path, weights -> keys of the config that they tell.
      params: path, weights, model -> our parameters.
      network: what they are of.
    """

    configure: Callable[[ConfigDict], None]
    read: Callable[[str | os.PathLike[str]], tuple[int, Tensors, Tensors]]
    facts: Callable[[str | os.PathLike[str], Tensors], dict[str, Any]]
    params: Callable[[str | os.PathLike[str], Tensors, Any], Params]
    network: type[Model] = DiT


TRAINED = {
    "official": Trained(
        official.configure_official,
        official.read_official,
        official.official_facts,
        official.official_params,
    ),
    "meanflow": Trained(
        meanflow.configure_meanflow,
        read_linen,
        meanflow.meanflow_facts,
        meanflow.meanflow_params,
    ),
    "imf": Trained(imf.configure_imf, read_linen, imf.imf_facts, imf.imf_params, InContext),
}
SOURCES = (*TRAINED, "dit", "sit", "safetensors")
TARGETS = ("safetensors", "jax_export")
# Positions may be computed, and heads leave no trace in any tensor's shape.
_UNTOLD = ("model.num_heads", "data.image_size")


def define_flags() -> None:
    command.define_config()
    flags.DEFINE_enum("from", None, SOURCES, "What the weights are.")
    flags.DEFINE_string("weights", None, "File or folder to read, with --from.")
    flags.DEFINE_enum("to", None, TARGETS, "What to write.")
    flags.DEFINE_string("output", None, "File, or folder of a jax_export, to write, with --to.")
    flags.DEFINE_string("workdir", None, "Folder of the run to make, or to convert.")
    flags.DEFINE_string("steps", "1", "Step counts of a jax_export, such as 1,4.")
    flags.DEFINE_integer("step", None, "With --to: the newest checkpoint by default.", 0)
    flags.DEFINE_string("ema", "evaluation", "With --to: which average of the weights.")


def main() -> None:
    values = flags.FLAGS
    source = values["from"].value
    workdir = epath.Path(command.required("workdir", "the folder of the run"))
    if (source is None) == (values.to is None):
        raise UserError(f"give --from={'|'.join(SOURCES)} or --to={'|'.join(TARGETS)}")
    command.require_places()
    if source is not None:
        require_place("workdir", str(workdir), "folder")
        weights = epath.Path(command.required("weights", "the file or folder to read"))
        config, step, params, average = read(source, weights)
        make_run(config, workdir, step, params, average)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        say(
            f"{workdir}: {config.objective.name}, step {step}, {count / 1e6:.3g}M parameters,"
            f" {config.model.num_heads} heads"
        )
    else:
        convert(values.to, workdir, epath.Path(command.required("output", "what to write")))


def read(source: str, weights: epath.Path) -> tuple[ConfigDict, int, Params, Params]:
    """Config, step, weights and average of a file.

    Raises:
      UserError: the file cannot be read or the config is not that of the weights.
    """
    if source == "safetensors":
        config, step, params = read_tensors(weights)
        return config, step, params, params
    config = ConfigDict(command.config())
    with config.unlocked():
        if source in TRAINED:
            TRAINED[source].configure(config)
        elif source == "dit":
            torch_dit.configure_dit(config)
        else:
            torch_dit.configure_sit(config)
    if source in TRAINED:
        return _read_trained(TRAINED[source], weights, config)
    checkpoint = read_torch_checkpoint(weights)
    if checkpoint.taken:
        say(f"{weights}: a training's checkpoint, of which its `{checkpoint.taken}` is taken")
    torch_dit.check_arguments(weights, source, checkpoint.arguments)
    classes, tensors = config.data.num_classes, checkpoint.weights
    _require(weights, config, torch_dit.torch_dit_facts(weights, tensors, classes))
    model = model_of(config, DiT)
    params = torch_dit.torch_dit_params(weights, tensors, model, source)
    if not torch_dit.has_null_label(tensors, classes):
        say(
            f"{weights}: of {classes} rows of labels none is for no label; the mean stands for it,"
            " and guidance has nothing to go from (if the last row is that of no label, give"
            f" --config.data.num_classes={classes - 1})"
        )
    if source == "dit":
        say("DDIM takes equal steps of time; DiT's own sampler spaces its timesteps otherwise")
    # The files do not say how long they were trained.
    return config, config.train.num_steps, params, params


def _read_trained(
    trained: Trained, path: epath.Path, config: ConfigDict
) -> tuple[ConfigDict, int, Params, Params]:
    """As `read`, of a training's checkpoint."""
    step, online, average = trained.read(path)
    _require(path, config, trained.facts(path, online))
    model = model_of(config, trained.network)
    if trained.network is InContext and not imf.has_v_blocks(online):
        say(f"{path}: without the blocks of the second output, which sampling does not need")
    params = (trained.params(path, weights, model) for weights in (online, average))
    return config, step, *params


def _require(weights: epath.Path, config: ConfigDict, facts: dict[str, Any]) -> None:
    """Raises a UserError unless the config is that of the weights, where a shape tells or a size
    that was published; what nothing tells must have been named."""
    named = {key for key in _UNTOLD if command.overridden(key)}
    known = {key: value for key, value in facts.items() if key not in named}
    require(weights, config, known, [key for key in _UNTOLD if key not in {*named, *facts}])


def model_of(config: ConfigDict, network: type[M]) -> M:
    """The network of a config.

    Raises:
      UserError: its objective has a network of another kind.
    """
    model = Experiment.from_config(config, jax.devices()).model
    if not isinstance(model, network):
        names = [name for name, kind in NETWORKS.items() if kind is network]
        raise UserError(
            f"objective.name={config.objective.name}: its network is another than that of these "
            f"weights; take an objective that trains {names[0]}"
        )
    return model


def convert(target: str, workdir: epath.Path, output: epath.Path) -> None:
    """Writes a run's weights for others.

    Raises:
      UserError: there is no such run, or the output cannot be written.
    """
    values = flags.FLAGS
    steps = command.integers("steps")
    if target == "safetensors" and output.suffix != ".safetensors":
        raise UserError(f"--output={output}: must end in .safetensors")
    run = load_run(workdir, values.step, values.ema)
    if target == "safetensors":
        beside = write_tensors(output, run.params, card(run, values.ema))
        say(f"{output} and {beside}: step {run.step}, average {values.ema}")
    else:
        write_artifact(output, run, values.ema, steps)
        say(f"{output}: step {run.step}, average {values.ema}, {values.steps} steps")


if __name__ == "__main__":
    command.run(main, define_flags)
