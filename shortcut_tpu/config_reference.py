"""Prints every key of a config with its value and its meaning, as Markdown.

  python -m shortcut_tpu.config_reference
  python -m shortcut_tpu.config_reference --config=digits > digits.md

Meanings and limits are those of configs/common.py and configs/hyperparameters.py. Values are the
defaults, or those of --config with its overrides.
"""

import ast
from collections.abc import Iterator, Mapping
import fnmatch
import inspect
import re
import sys
from types import ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import common, hyperparameters
from configs.limits import Limit, Named
from shortcut_tpu.cli import command
from shortcut_tpu.cli.config import from_recipe, leaves

_OBJECTIVE = "objective."


def reference(config: ConfigDict) -> str:
    """The reference of a config that started from `common.get_config`."""
    values, limits = dict(leaves(config)), common.get_limits()
    published = from_recipe(config)
    marks = {key: f" of {config.objective.recipe}" for key, same in published.items() if same}
    groups: dict[str, list[str]] = {}
    for keys, meaning in meanings().items():
        names = [name for key in keys for name in values if _known(name, limits) == key]
        if not names:
            continue
        group = names[0].rpartition(".")[0]
        for name in names:
            limit = limits[_known(name, limits)]
            cells = (
                f"`{name.rpartition('.')[2]}`",
                f"`{values[name]!r}`{marks.get(name, '')}",
                str(limit.each if isinstance(limit, Named) else limit),
                # Of keys that share a meaning the first one has it.
                meaning.replace("|", "\\|") if name == names[0] else "as above",
            )
            groups.setdefault(group, []).append(f"| {' | '.join(cells)} |")
    lines = ["# Keys of a config", "", "`--config.KEY=VALUE` overrides a key."]
    if marks:
        lines[-1] += f" Values{marks[next(iter(marks))]} are of its published recipe."
    for group, rows in groups.items():
        title = f"`{group}`" if group else "The run"
        lines += ["", f"## {title}", "", "| key | value | may be | meaning |", "|---|---|---|---|"]
        lines += rows
    return "\n".join(lines) + "\n"


def _known(name: str, limits: Mapping[str, Limit]) -> str:
    """The key that configs/common.py has; of a name that a config chose, its group."""
    return name if name in limits else name.rpartition(".")[0]


def meanings() -> dict[tuple[str, ...], str]:
    """The comments above the keys, by those that each is about."""
    function, lines = _function(common, "_keys")
    found: list[tuple[list[str], str]] = []
    for node in function.body:
        match node:
            case ast.Assign(
                targets=[ast.Attribute() as target],
                value=ast.Call(func=ast.Name(id="Key")),
            ):
                path = ast.unparse(target).removeprefix("config.")
            case _:
                continue
        keys, comment = [path], _comment_above(lines, node.lineno)
        # Keys below one another share the comment above the first.
        if comment or not found:
            found.append((keys, comment))
        else:
            found[-1][0].extend(keys)
    found += _objectives(*_function(hyperparameters, "keys"))
    return {tuple(keys): comment for keys, comment in found}


def _function(module: ModuleType, name: str) -> tuple[ast.FunctionDef, list[str]]:
    """A function of a module, and the lines of the module."""
    source = inspect.getsource(module)
    (found,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return found, source.splitlines()


def _objectives(function: ast.FunctionDef, lines: list[str]) -> Iterator[tuple[list[str], str]]:
    """Hyperparameters: a comment of their own, or what their name means everywhere."""
    shared = _shared(ast.get_docstring(function) or "")
    for node in ast.walk(function):
        if not isinstance(node, ast.Dict):
            continue
        for name, value in zip(node.keys, node.values, strict=True):
            if not isinstance(name, ast.Constant) or not isinstance(value, ast.Dict):
                continue
            before = ""
            for key in value.keys:
                assert isinstance(key, ast.Constant)
                own = _comment_above(lines, key.lineno)
                meaning = own or _lookup(shared, str(key.value)) or before
                yield [f"{_OBJECTIVE}{name.value!s}.{key.value!s}"], meaning
                # As above, keys below one another share a comment.
                before = meaning


def _shared(docstring: str) -> dict[str, str]:
    """Lines like `a, *_b: text` by the names before the colon."""
    entries = re.findall(r"^  (\S[^:\n]*): (.*(?:\n    .*)*)", docstring, re.MULTILINE)
    return {
        name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")
    }


def _lookup(shared: Mapping[str, str], key: str) -> str:
    return next((text for name, text in shared.items() if fnmatch.fnmatch(key, name)), "")


def _comment_above(lines: list[str], number: int) -> str:
    """The comment that ends above a line, counted from 1; a sentence again."""
    comment: list[str] = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        comment.insert(0, line.strip().lstrip("# "))
    return " ".join(comment)


def define_flags() -> None:
    command.define_config()


def main() -> None:
    given: Any = flags.FLAGS.config
    sys.stdout.write(reference(common.get_config() if given is None else given))


if __name__ == "__main__":
    command.run(main, define_flags)
