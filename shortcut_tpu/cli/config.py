"""Reads configs from the command line: `--config=NAME_or_PATH --config.a.b=value`.

Usage:
  arguments = prepare_arguments(sys.argv)   # names become paths, unknown keys are refused
  config = load("digits")                   # as its file says
  config = load("imagenet256_b", "meanflow")  # with that method's recipe below what the file says
  save(config, workdir)                     # as it was run
  differences(before, config)               # ["batch_size: 256 -> 128"]
  config = restore(workdir)
"""

from collections.abc import Iterable, Iterator, Sequence
import difflib
import functools
import importlib.util
import json
from pathlib import Path
import reprlib
from typing import Any

from etils import epath
from ml_collections import ConfigDict

import configs
from configs import common, recipes
from configs.limits import Limit, Named
from data_pipeline.atomic_files import write_text
from data_pipeline.command_line import expand_home
from data_pipeline.errors import UserError

CONFIG_FILE = "config.json"
_LIMITS = common.get_limits()
# Groups whose keys are names that a config chooses.
_OPEN = tuple(f"{key}." for key, limit in _LIMITS.items() if isinstance(limit, Named))
_CONFIG_FOLDER = Path(configs.__file__).parent


def names() -> list[str]:
    """The configs that have a name."""
    files = (path.stem for path in _CONFIG_FOLDER.glob("*.py"))
    return sorted(set(files) - {"__init__", "common", "hyperparameters", "limits", "recipes"})


def resolve(name_or_path: str) -> Path:
    """The file of a config.

    Raises:
      UserError: there is none.
    """
    if name_or_path in names():
        return _CONFIG_FOLDER / f"{name_or_path}.py"
    if name_or_path.endswith(".py") and Path(name_or_path).is_file():
        return Path(name_or_path)
    raise UserError(
        f"--config={name_or_path}: neither a file ending in .py nor one of {', '.join(names())}"
    )


def load(name_or_path: str, recipe: str = "") -> ConfigDict:
    """The config of a file, without overrides, locked.

    Args:
      name_or_path: of the config.
      recipe: the method whose recipe it takes, if it takes one; by default that of its objective.

    Raises:
      UserError: there is no such file, or it does not make a config.
    """
    path = resolve(name_or_path)
    if recipe:
        with recipes.choosing(recipe):
            return _made(path)
    config = _made(path)
    objective = config.get("objective", {})
    taken, method = objective.get("recipe"), objective.get("name")
    # A file may choose another objective after it has started from another config.
    return load(name_or_path, method) if taken and taken != method else config


def _made(path: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return with_home(config.lock())


def with_home(config: ConfigDict) -> ConfigDict:
    """The config with every leading ~ of a path in it replaced, in place.

    Raises:
      UserError: there is no such home folder.
    """
    for key, value in list(leaves(config)):
        if isinstance(value, str) and "~" in value:
            config.update_from_flattened_dict({key: expand_home(value)})
    return config


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Replaces a config's name by its path, and checks the keys of overrides.

    Args:
      arguments: the command line, the program first.

    Raises:
      UserError: the config is missing, or a key is unknown; the message names the nearest one.
    """
    prepared = list(arguments)
    config = None
    for argument in arguments:
        key, equals, _ = argument.lstrip("-").partition("=")
        # Launchers hand overrides on word by word.
        written = argument.startswith("--config.") and equals
        if argument.startswith("-") and key.startswith("config.") and not written:
            raise UserError(f"{argument}: an override is written --{key}=VALUE")
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or flag != "config":
            continue
        if not equals and index + 1 < len(arguments):
            value = arguments[index + 1]
            prepared[index + 1] = str(resolve(value))
        else:
            prepared[index] = f"--config={resolve(value)}"
        config = load(value, _asked_recipe(arguments))
    if config is not None:
        overrides = _overrides(arguments)
        for key in overrides:
            _check_key(config, key)
        asked = overrides.get("objective.recipe", "")
        if asked and asked not in recipes.RECIPES:
            raise UserError(
                f"--config.objective.recipe={asked}: none of {', '.join(recipes.RECIPES)}"
            )
        if asked and config.objective.recipe != asked:
            raise UserError(
                f"--config.objective.recipe={asked}: this config takes no recipe, its choices are "
                "its own; configs/recipes.py says how one takes them"
            )
    return prepared


def _asked_recipe(arguments: Sequence[str]) -> str:
    """The method whose recipe a command line asks for; "" where the file decides."""
    overrides = _overrides(arguments)
    return overrides.get("objective.recipe") or overrides.get("objective.name", "")


def taken_recipe(arguments: Sequence[str]) -> str:
    """The method whose recipe the config of prepared arguments takes, if it takes any."""
    asked = _asked_recipe(arguments)
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config" and not asked:
            asked = str(load(value if equals else following).get("objective", {}).get("recipe", ""))
    return asked


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    """The keys that --config.KEY=VALUE names, and their values."""
    found = (
        a.removeprefix("--config.").partition("=") for a in arguments if a.startswith("--config.")
    )
    return {key: value for key, _, value in found}


def _check_key(config: ConfigDict, key: str) -> None:
    known = dict(leaves(config))
    if key in known:
        return
    if any(leaf.startswith(f"{key}.") for leaf in known):
        raise UserError(f"--config.{key} is a group of keys, not a value")
    raise UserError(f"--config.{key}: no such key{_hint(known, key)}")


def _hint(known: Iterable[str], key: str) -> str:
    # The whole path first; for a key in the wrong group, its last part.
    near = difflib.get_close_matches(key, known, n=1) or [
        leaf for leaf in known if leaf.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    return f"; the nearest is --config.{near[0]}" if near else "; configs/common.py lists them all"


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every key that is no group, such as ("model.width", 768)."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def from_recipe(config: ConfigDict) -> dict[str, bool]:
    """The keys of the recipe that a config takes, and whether they have the recipe's values."""
    values, here = recipes.values(config.objective.recipe), dict(leaves(config))
    return {key: here.get(key) == value for key, value in values.items()}


def check_values(config: ConfigDict) -> None:
    """Holds every key against what configs/common.py says beside it.

    Raises:
      UserError: the config lacks a key, or a value is none of those that its key may have.
    """
    for key, limit in _LIMITS.items():
        try:
            value = functools.reduce(lambda group, name: group[name], key.split("."), config)
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{key}: the config lacks it; it may be {limit}") from None
        if isinstance(limit, Named) and isinstance(value, ConfigDict):
            for name, one in value.items():
                _require(f"{key}.{name}", one, limit.each)
        else:
            _require(key, value, limit)


def check_keys(config: ConfigDict) -> None:
    """Refuses a config with a key that configs/common.py does not have.

    Raises:
      UserError: the message names the nearest one that there is.
    """
    for key, _ in leaves(config):
        if key not in _LIMITS and not key.startswith(_OPEN):
            raise UserError(f"{key}: no such key{_hint(_LIMITS, key)}")


def _require(key: str, value: Any, limit: Limit) -> None:
    if not limit.admits(value):
        raise UserError(f"{key}={reprlib.repr(value)}: it may be {limit}")


def completed(saved: dict[str, Any]) -> ConfigDict:
    """A config that was read from JSON; keys that an earlier release did not have get defaults."""
    return ConfigDict(_filled(saved, common.get_config().to_dict()))


def _filled(saved: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    missing = {key: value for key, value in defaults.items() if key not in saved}
    return missing | {
        key: _filled(value, defaults[key], f"{prefix}{key}.")
        if isinstance(value, dict)
        and isinstance(defaults.get(key), dict)
        and f"{prefix}{key}." not in _OPEN
        else _as_text(value, defaults.get(key))
        for key, value in saved.items()
    }


def _as_text(value: Any, default: Any) -> Any:
    """A number as text where the key is a text by default, such as a strength of guidance."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if number and isinstance(default, str) else value


def differences(before: dict[str, Any], config: ConfigDict) -> list[str]:
    """What differs between a config that was read from JSON and one that is here, key by key.

    A key that one of them lacks has its default there: a comparison leaves out other methods' keys.
    """
    # As JSON gives it back: tuples are lists.
    now = json.loads(json.dumps(config.to_dict()))
    old, new = (
        dict(leaves(ConfigDict(json.loads(json.dumps(completed(either).to_dict())))))
        for either in (before, now)
    )
    absent = "absent"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted({*old, *new})
        if old.get(key, absent) != new.get(key, absent)
    ]


def save(config: ConfigDict, workdir: epath.PathLike) -> None:
    """Writes the resolved config into the workdir, for `evaluate` and `sample`."""
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2)
    write_text(workdir / CONFIG_FILE, text + "\n")


def restore(workdir: epath.PathLike) -> ConfigDict:
    """The config that `save` wrote.

    Raises:
      UserError: the folder is not a workdir, or its config is none.
    """
    path = epath.Path(workdir) / CONFIG_FILE
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__} in place of keys")
        config = with_home(completed(content).lock())
        check_values(config)
        return config
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is {workdir} the --workdir of a run?") from None
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: not a config: {error}") from None


def recipe_lines(config: ConfigDict) -> list[str]:
    """A line on the published recipe that a config takes, and what it has of its own; or none."""
    taken, own = config.objective.recipe, from_recipe(config)
    if not taken:
        return []
    others = ", ".join(key for key, same in own.items() if not same)
    return [f"as published for {taken}" + (f", but for {others}" if others else "")]
