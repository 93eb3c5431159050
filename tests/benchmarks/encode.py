"""Images a second of encode_latents beside its encoder alone, in one run.

The encoder alone has its pixels on the device already; encode_latents reads JPEG files of a
folder, decodes and fits them in processes of their own, and writes shards. Its start and
compilation are left out: the rate is taken from the first batch to the last.

Usage:
    $ python tests/benchmarks/encode.py --autoencoder=taef2:WEIGHTS --image_size=64
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
from pathlib import Path
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from data_pipeline import encode_latents
from data_pipeline.autoencoders import Autoencoder, load_autoencoder
from data_pipeline.decoding import default_workers
from data_pipeline.encoder import Encoder
from data_pipeline.images import Preprocessing
from data_pipeline.sources import open_source

ROUNDS = 5
BATCHES = 4


def make_images(folder: Path, count: int, side: int) -> None:
    """JPEG files half as large again as the pictures they become, as ImageNet's are."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        size = (2 * side, 3 * side // 2)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{index:06d}.jpg", quality=90
        )


def encoder_alone(autoencoder: Autoencoder, batch: int, side: int) -> Callable[[], float]:
    """A function that measures it; compiled here."""
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    on_device = jax.device_put(pixels)
    program = jax.jit(lambda images: autoencoder.encode(images.astype(np.float32) / 127.5 - 1))
    jax.block_until_ready(program(on_device))

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(BATCHES - 1):
            jax.block_until_ready(program(on_device))
        return (BATCHES - 1) * batch / (time.perf_counter() - start)

    return measure


def whole_command(
    autoencoder: Autoencoder, images: Path, output: Path, side: int, workers: int
) -> float:
    """The rate at which batches were finished."""
    times: list[tuple[float, int]] = []

    @contextlib.contextmanager
    def clock(units: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: times.append((time.perf_counter(), done))

    encode_latents.progress_bar = clock
    encode_latents.encode(
        open_source(f"imagefolder:{images}"),
        autoencoder,
        output,
        preprocessing=Preprocessing("adm", side),
        workers=workers,
    )
    return sum(done for _, done in times[1:]) / (times[-1][0] - times[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--autoencoder", required=True)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=default_workers())
    values = parser.parse_args()
    autoencoder, side = load_autoencoder(values.autoencoder), values.image_size
    batch = Encoder(autoencoder, (side, side, 3), flips=False).batch_size
    alone: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name) / "images", BATCHES * batch, side)
        measure = encoder_alone(autoencoder, batch, side)
        # In turns, so that what else the machine does meets both alike.
        alone.append(measure())
        for number in range(ROUNDS):
            output = Path(name) / str(number)
            images = Path(name) / "images"
            whole.append(whole_command(autoencoder, images, output, side, values.workers))
            alone.append(measure())
    print(f"{'':16} {'images/s, median':>17} {'lowest':>8} {'highest':>8}")
    for label, rates in (("encoder alone", alone), ("encode_latents", whole)):
        print(f"{label:16} {np.median(rates):17.1f} {min(rates):8.1f} {max(rates):8.1f}")
    # Each to the mean of those just before and after it.
    ratios = [rate * 2 / (alone[i] + alone[i + 1]) for i, rate in enumerate(whole)]
    print("ratios", " ".join(f"{ratio:.2f}" for ratio in ratios), f"median {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
