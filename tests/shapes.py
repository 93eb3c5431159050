"""The check of shapes that tests put on functions; jaxtyping calls it for each."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compares its arrays with its annotations when it is called.

    Annotations of anything else are dropped: tests call the code with stand-ins.
    """
    shapes = {name: hint for name, hint in function.__annotations__.items() if _tells_shape(hint)}
    function.__annotations__ = shapes
    return beartype(function) if shapes else function


def _tells_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_tells_shape(part) for part in get_args(hint))
