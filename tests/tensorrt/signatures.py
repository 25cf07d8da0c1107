"""Holds calls of TensorRT's classes to their real signatures, which stand in the bindings' docstrings alone.

    set_shape(self: IOptimizationProfile, input: str, min: Dims, opt: Dims, max: Dims) -> None

pybind11 writes one such line per overload. `inspect` does not know them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

_BUFFER = (bytes, bytearray, memoryview)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "typing.SupportsInt": int,
    "bool": bool,
    "tuple": tuple,
    "buffer": _BUFFER,
    "typing_extensions.Buffer": _BUFFER,
}


@cache
def signatures(name: str, text: str) -> list[inspect.Signature]:
    """The signatures of a method with this docstring, one per overload; [] where it has none."""
    lines = re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", text, re.MULTILINE)
    return [_signature(line) for line in lines if not line.startswith("*args")]


def _signature(text: str) -> inspect.Signature:
    parameters = []
    for part in re.split(r", (?=\w+(?::| =|$))", text):
        name, _, kind = part.partition(": ")
        kind, _, default = kind.partition(" = ")
        kinds = {"annotation": kind, "default": default or inspect.Parameter.empty}
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, **kinds))
    return inspect.Signature(parameters)


def check_call(method: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises TypeError where no overload takes these arguments (without self)."""
    found = signatures(method.__name__, method.__doc__ or "")
    for signature in found:
        try:
            bound = signature.bind(None, *arguments, **named)
        except TypeError:
            continue
        kinds = {name: signature.parameters[name].annotation for name in bound.arguments}
        if all(isinstance(value, _TYPES.get(kinds[name], object)) for name, value in [*bound.arguments.items()][1:]):
            return
    if found:
        raise TypeError(f"{method.__name__} takes {[str(one) for one in found]}, not {arguments} {named}")


class Fake:
    """Has what a class of the bindings has, and nothing else; given methods do what they are given to do.

    Every call is held to the real signature, and attributes that the class has not cannot be set.
    """

    def __init__(self, kind: type, **given: Any) -> None:
        vars(self)["_kind"] = kind
        for name, value in given.items():
            real = getattr(kind, name)
            assert not callable(real) or signatures(name, real.__doc__ or ""), f"the signature of {name} is not known"
            vars(self)[name] = _checked(real, value) if callable(real) else value

    def __getattr__(self, name: str) -> Any:
        """What was not given."""
        if callable(real := getattr(self._kind, name)):
            return _checked(real, partial(_refuse, name))
        return _refuse(name)

    def __setattr__(self, name: str, value: Any) -> None:
        getattr(self._kind, name)
        vars(self)[name] = value


def _checked(real: Any, does: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        check_call(real, arguments, named)
        return does(*arguments, **named)

    return call


def _refuse(name: str, *arguments: Any, **named: Any) -> Any:
    raise NotImplementedError(f"{name} is not simulated here")
