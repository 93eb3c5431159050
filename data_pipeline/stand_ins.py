"""Stand-ins for names that a pickle may have, which run nothing; see `pickles`, `torch_archive`.

Usage:
  names = plain_names() | {("numpy", "dtype"): Call(dtype)}     # anew for each file
  raise unknown("os", "system")
"""

from collections.abc import Callable
from typing import Any

from data_pipeline.errors import UserError


class Call:
    """A function that a pickle may call and cannot look into."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class Namespace:
    """argparse's: what a command was told, as plain data."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = dict(state)


def plain_names() -> dict[tuple[str, str], Any]:
    """What the names of plain data become, made anew for each file: a pickle may write to them."""
    return {
        ("argparse", "Namespace"): type("Namespace", (Namespace,), {"__slots__": ()}),
        # Bytes, before pickles had a way to write them.
        ("_codecs", "encode"): Call(lambda text, _: text.encode("latin1")),
    }


def unknown(module: str, name: str) -> UserError:
    """The refusal of a name."""
    return UserError(f"names {module}.{name}, which weights have no need of; it is not read")
