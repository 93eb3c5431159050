"""Starts commands: parses flags, prints help, and reports user errors in one line.

Usage, at the end of a command's file:
  def define_flags() -> None:
      command.define_config()
      flags.DEFINE_string("workdir", None, "folder of the run")

  if __name__ == "__main__":
      command.run(main, define_flags)
"""

from collections.abc import Callable, Sequence
import json
from pathlib import Path
from typing import Any

from absl import app, flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from configs import recipes
from configs.limits import Whole
from data_pipeline.atomic_files import failures, require_place, write_text
from data_pipeline.command_line import (
    expand_home,
    flag_group,
    parse_flags,
    quiet_libraries,
    required,
)
from data_pipeline.errors import UserError, exit_on_user_error
from data_pipeline.system_errors import reason
from shortcut_tpu.cli import config as config_lib
from shortcut_tpu.cli import schema
from shortcut_tpu.sampling.guidance import Guidance

__all__ = [
    "config",
    "config_for",
    "config_path",
    "define_config",
    "define_guidance",
    "define_json",
    "flag_group",
    "guidance",
    "integers",
    "overridden",
    "require_places",
    "required",
    "run",
    "write_json",
]


def run(main: Callable[[], None], define_flags: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; errors a user can cause end in one line and status 1.

    Flags are defined here and not at import, so that one command can import another.
    """
    define_flags()

    def guarded(arguments: Sequence[str]) -> None:
        if len(arguments) > 1:
            raise UserError(f"unexpected argument {arguments[1]!r}; flags look like --name=value")
        quiet_libraries()
        main()

    app.run(exit_on_user_error(guarded), flags_parser=exit_on_user_error(_parse))


def define_config() -> None:
    """Defines --config and, when it is parsed, its overrides --config.KEY=VALUE."""
    config_flags.DEFINE_config_file(
        "config",
        help_string="A file of configs/ by its name, or a path. --config.KEY=VALUE overrides a "
        "key; configs/common.py explains them all.",
    )


def define_json() -> None:
    """Defines --json, which `write_json` obeys."""
    flags.DEFINE_string("json", None, "File for the figures that are printed.")


def define_guidance() -> None:
    """Defines --guidance and --guidance_interval, which `guidance` obeys."""
    flags.DEFINE_string(
        "guidance",
        None,
        "Classifier-free guidance of the samples, such as 1.5, or 128:1.5 for those of 128 steps; "
        "the config's by default.",
    )
    flags.DEFINE_list(
        "guidance_interval", None, "The times that are guided, START,END; the config's by default."
    )


def guidance(evaluation: Any) -> Guidance:
    """What --guidance and --guidance_interval say, or the config's `evaluation`.

    Raises:
      UserError: they cannot be read.
    """
    values = flags.FLAGS
    return Guidance.parse(
        evaluation.guidance if values.guidance is None else values.guidance,
        values.guidance_interval or evaluation.guidance_interval,
    )


def _parse(arguments: Sequence[str]) -> list[str]:
    prepared = config_lib.prepare_arguments([expand_home(one) for one in arguments])
    with recipes.choosing(config_lib.taken_recipe(prepared)):
        rest = parse_flags(prepared)
    if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        schema.check(config())
    return rest


def config() -> Any:
    """The parsed --config, with its overrides.

    Raises:
      UserError: the flag was not given.
    """
    if flags.FLAGS.config is None:
        raise UserError(f"--config is missing; there are {', '.join(config_lib.names())}")
    return config_lib.with_home(flags.FLAGS.config)


def overridden(key: str) -> bool:
    """Whether --config.KEY was given."""
    return key in config_flags.get_override_values(flags.FLAGS["config"])


def config_for(method: str) -> ConfigDict:
    """The parsed --config as another method has it, with that one's recipe if it takes recipes.

    Raises:
      UserError: as `config`, or the overrides do not go with that recipe.
    """
    given = config()
    flag: Any = flags.FLAGS["config"]
    overrides = config_flags.get_override_values(flag)
    if not given.objective.recipe or "objective.recipe" in overrides:
        return given
    found = config_lib.load(flag.config_filename, method)
    with found.unlocked():
        found.update_from_flattened_dict(overrides)
    schema.check(found)
    return found


def config_path() -> Path:
    """The file that --config named, whether by name or by path."""
    flag: Any = flags.FLAGS["config"]
    return Path(flag.config_filename)


def integers(name: str) -> tuple[int, ...]:
    """The positive integers of a flag like 1,2,4.

    Raises:
      UserError: it holds something else.
    """
    text = flags.FLAGS[name].value or ""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(map(Whole(1).admits, numbers)):
        raise UserError(f"--{name}={text}: not positive whole numbers like 1,2,4")
    return numbers


def require_places() -> None:
    """Refuses --output, --json and --save_samples that cannot be written, before the work for them.

    On a pod only the first process writes them: `distributed.first_does(command.require_places)`.

    Raises:
      UserError: one of them cannot.
    """
    for name in ("output", "json", "save_samples"):
        path = flags.FLAGS[name].value if name in flags.FLAGS else None
        if path:
            may_be_folder = name == "output" and not Path(path).suffix
            require_place(name, path, "either" if may_be_folder else "file")


def write_json(figures: dict[str, Any]) -> None:
    """Writes a command's figures where --json asked for them, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    path = flags.FLAGS.json
    if not path:
        return
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(epath.Path(path), json.dumps(figures, indent=2) + "\n")
    except failures() as error:
        raise UserError(f"--json={path}: {reason(error)}") from None
