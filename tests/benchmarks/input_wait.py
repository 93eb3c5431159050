"""How long a steady run on the digits waits for input, beside how long its steps take."""

import contextlib
import io

from etils import epath

from data_pipeline import encode_latents
from data_pipeline.autoencoders import load_autoencoder
from data_pipeline.sources import open_source
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.observability.events import read_events
from shortcut_tpu.train import train
from tests.benchmarks.comparison import Bar, Comparison, Options

INTERVAL = 20


def measure(options: Options) -> list[Comparison]:
    records, workdir = options.folder / "records", epath.Path(options.folder / "run")
    config = config_lib.load("digits").copy_and_resolve_references()
    with config.unlocked():
        config.data.path = str(records)
        # The first interval compiles.
        config.train.num_steps = INTERVAL * (options.rounds + 1)
        config.train.log_every_steps = INTERVAL
        config.checkpoint.every_steps = config.evaluation.every_steps = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        encode_latents.encode(open_source("digits"), load_autoencoder("identity"), records)
        train(config.lock(), workdir)
    scalars = read_events(workdir).scalars
    if "perf/step_seconds" not in scalars:
        raise KeyboardInterrupt("the run was asked to end")
    steps = list(scalars["perf/step_seconds"].values())[1:]
    shares = list(scalars["perf/input_wait"].values())[1:]
    waits = [share * step for share, step in zip(shares, steps, strict=True)]
    name = "waiting for input over the step, digits"
    return [Comparison(name, "s", waits, steps, Bar(high=0.01))]
