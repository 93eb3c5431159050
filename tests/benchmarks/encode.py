"""Images a second of encode_latents beside its encoder alone.

The encoder alone has its pixels on the device already; encode_latents reads JPEG files of a
folder, decodes and fits them in processes of their own, and writes shards. Its start and
compilation are left out: the rate is taken from the first batch to the last.
"""

from collections.abc import Callable, Iterator
import contextlib
import itertools
from pathlib import Path
import time
from unittest import mock

import jax
import numpy as np
from PIL import Image

from data_pipeline import encode_latents
from data_pipeline.autoencoders import Autoencoder, load_autoencoder
from data_pipeline.decoding import default_workers
from data_pipeline.encoder import Encoder
from data_pipeline.images import Preprocessing
from data_pipeline.sources import open_source
from tests.benchmarks.comparison import Bar, Comparison, Options, Skipped, in_turns

BATCHES = 4
SIDE = 64


def make_images(folder: Path, count: int) -> None:
    """JPEG files half as large again as the pictures they become, as ImageNet's are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        size = (2 * SIDE, 3 * SIDE // 2)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{index:06d}.jpg", quality=90
        )


def encoder_alone(autoencoder: Autoencoder, batch: int) -> Callable[[], float]:
    """A function that measures it; compiled here."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    on_device = jax.device_put(pixels)
    program = jax.jit(lambda images: autoencoder.encode(images.astype(np.float32) / 127.5 - 1))
    jax.block_until_ready(program(on_device))

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(BATCHES - 1):
            jax.block_until_ready(program(on_device))
        return (BATCHES - 1) * batch / (time.perf_counter() - start)

    return measure


def whole_command(autoencoder: Autoencoder, images: Path, output: Path) -> float:
    """The rate at which batches were finished."""
    times: list[tuple[float, int]] = []

    @contextlib.contextmanager
    def clock(units: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: times.append((time.perf_counter(), done))

    with mock.patch.object(encode_latents, "progress_bar", clock):
        encode_latents.encode(
            open_source(f"imagefolder:{images}"),
            autoencoder,
            output,
            preprocessing=Preprocessing("adm", SIDE),
            workers=default_workers(),
        )
    return sum(done for _, done in times[1:]) / (times[-1][0] - times[0][0])


def measure(options: Options) -> list[Comparison]:
    if options.autoencoder is None:
        raise Skipped("give --autoencoder=NAME:WEIGHTS, such as taef2:WEIGHTS")
    autoencoder = load_autoencoder(options.autoencoder)
    batch = Encoder(autoencoder, (SIDE, SIDE, 3), flips=False).batch_size
    images = options.folder / "images"
    make_images(images, BATCHES * batch)
    outputs = (options.folder / str(number) for number in itertools.count())
    rates = in_turns(
        lambda: whole_command(autoencoder, images, next(outputs)),
        encoder_alone(autoencoder, batch),
        options.rounds,
    )
    name = f"encode_latents over its encoder, {SIDE}x{SIDE}"
    return [Comparison(name, "/s", *rates, Bar(low=0.9))]
