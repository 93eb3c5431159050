"""Encodes batches of pixels on all accelerators of this host.

Usage:
    encoder = Encoder(autoencoder, image_shape=(256, 256, 3), flips=True)
    for batch, latents in encoder.encode(reader.batches(ranges)):
        latents["mean"], latents["mean_flipped"]  # [n, h, w, c] float16
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.autoencoders import Autoencoder
from data_pipeline.decoding import Batch
from data_pipeline.errors import UserError

_MAX_BATCH = 256
# An SD VAE takes about 1.5 KiB a pixel to encode: 32 images of 256x256 are 3 GiB.
_BATCH_PIXELS = 2**21
# Batches of a device that are under way, so that it need not wait for the next one's transfer.
_IN_FLIGHT = 2

Latents = dict[str, np.ndarray]
_Program = Callable[[jax.Array], dict[str, jax.Array]]


class Encoder:
    """An autoencoder's encoder, compiled once a device for one size of batch.

    Each device takes whole batches, so that a record's bytes do not depend on how many there are.
    """

    def __init__(self, autoencoder: Autoencoder, image_shape: tuple[int, ...], flips: bool):
        """Compiles nothing yet.

        Args:
            autoencoder: what encodes.
            image_shape: [H, W, C] of every image.
            flips: whether the mirrored images are encoded as well.
        """
        self._autoencoder = autoencoder
        self._image_shape = image_shape
        self._flips = flips
        self.batch_size = _batch_size(image_shape)

    def encode(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Latents]]:
        """Encodes batches of at most `batch_size` images, in their order.

        Yields:
            Each batch, and its latents by field name, [n, h, w, c] float16.

        Raises:
            UserError: a latent is not a finite float16.
        """
        devices = jax.local_devices()
        batches = iter(batches)
        # No more of them are compiled for than have something to do.
        first = list(itertools.islice(batches, len(devices)))
        if not first:
            return
        devices = devices[: len(first)]
        dtype = first[0].images.dtype
        with concurrent.futures.ThreadPoolExecutor(len(devices)) as pool:
            programs = list(pool.map(lambda device: self._compile(device, dtype), devices))
        turns = itertools.cycle(zip(devices, programs, strict=True))
        waiting: deque[tuple[Batch, dict[str, jax.Array]]] = deque()
        for batch in itertools.chain(first, batches):
            device, program = next(turns)
            outputs = program(jax.device_put(self._padded(batch.images), device))
            for output in outputs.values():
                output.copy_to_host_async()
            waiting.append((batch, outputs))
            if len(waiting) >= _IN_FLIGHT * len(devices):
                yield _collected(*waiting.popleft())
        while waiting:
            yield _collected(*waiting.popleft())

    def _padded(self, images: np.ndarray) -> np.ndarray:
        return np.pad(images, [(0, self.batch_size - len(images)), (0, 0), (0, 0), (0, 0)])

    def _compile(self, device: jax.Device, dtype: np.dtype) -> _Program:
        sharding = jax.sharding.SingleDeviceSharding(device)
        shape = (self.batch_size, *self._image_shape)
        images = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        return jax.jit(self._program).lower(images).compile()

    def _program(self, images: jax.Array) -> dict[str, jax.Array]:
        """Images [B, H, W, C], uint8 or float32 in [-1, 1], to the fields of their records."""
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 127.5 - 1
        outputs = {}
        for suffix in ("", "_flipped")[: 1 + self._flips]:
            mean, std = self._autoencoder.encode(images[:, :, ::-1] if suffix else images)
            outputs[f"mean{suffix}"] = jnp.asarray(mean).astype(jnp.float16)
            if std is not None:
                outputs[f"std{suffix}"] = jnp.asarray(std).astype(jnp.float16)
        return outputs


def _collected(batch: Batch, outputs: dict[str, jax.Array]) -> tuple[Batch, Latents]:
    latents = {}
    for name, output in outputs.items():
        latents[name] = np.asarray(output)[: len(batch.images)]
        # What does not fit a float16 has become infinite.
        if not np.isfinite(latents[name]).all():
            raise UserError(
                f"the {name} of an image from number {batch.first} to"
                f" {batch.first + len(batch.images) - 1} is not a finite float16; are these the"
                " autoencoder's weights?"
            )
    return batch, latents


def _batch_size(image_shape: tuple[int, ...]) -> int:
    """How many images are encoded at once: a function of their size alone, as bytes must be."""
    return max(min(_BATCH_PIXELS // (image_shape[0] * image_shape[1]), _MAX_BATCH), 1)
