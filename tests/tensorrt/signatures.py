"""Holds calls of TensorRT's classes to their real signatures, which stand in the bindings' docstrings alone.

    set_shape(self: IOptimizationProfile, input: str, min: Dims, opt: Dims, max: Dims) -> None

pybind11 writes one such line per overload. `inspect` does not know them, so `create_autospec` checks names of methods
but not of arguments.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any
from unittest.mock import NonCallableMagicMock, create_autospec

_TYPES: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "typing.SupportsInt": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "tuple": lambda value: isinstance(value, tuple),
    "buffer": lambda value: isinstance(value, (bytes, bytearray, memoryview)),
    "typing_extensions.Buffer": lambda value: isinstance(value, (bytes, bytearray, memoryview)),
}


def signatures(method: Any) -> list[inspect.Signature]:
    """The signatures of a method of the bindings, one per overload; [] where the docstring has none."""
    lines = re.findall(rf"^(?:\d+\. )?{method.__name__}\((.*)\) -> ", method.__doc__ or "", re.MULTILINE)
    return [_signature(line) for line in lines if not line.startswith("*args")]


def _signature(text: str) -> inspect.Signature:
    parameters = []
    for part in re.split(r", (?=\w+(?::| =|$))", text):
        name, _, kind = part.partition(": ")
        kind, _, default = kind.partition(" = ")
        either_way = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = default or inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, either_way, annotation=kind, default=default))
    return inspect.Signature(parameters)


def check_call(method: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Raises TypeError where no overload takes these arguments (without self)."""
    found = signatures(method)
    for signature in found:
        try:
            bound = signature.bind(None, *arguments, **named)
        except TypeError:
            continue
        kinds = {name: signature.parameters[name].annotation for name in bound.arguments}
        if all(_fits(kinds[name], value) for name, value in list(bound.arguments.items())[1:]):
            return
    if found:
        raise TypeError(f"{method.__name__} takes {[str(one) for one in found]}, not {arguments} {named}")


def _fits(kind: str, value: Any) -> bool:
    return _TYPES.get(kind, lambda _: True)(value)


def fake(kind: type, **methods: Any) -> Any:
    """An instance that has what the class has, and nothing else; given methods do what they are given to do.

    Every call is held to the real signature, and attributes that the class has not cannot be set.
    """
    made: NonCallableMagicMock = create_autospec(kind, instance=True, spec_set=True)
    assert methods.keys() <= set(dir(kind)), f"{kind.__name__} has no {methods.keys() - set(dir(kind))}"
    for name in (name for name in dir(kind) if not name.startswith("_")):
        real = getattr(kind, name)
        if callable(real):
            assert name not in methods or signatures(real), f"the signature of {name} is not known"
            getattr(made, name).side_effect = _checked(real, methods.get(name))
        elif name in methods:
            setattr(made, name, methods[name])
    return made


def _checked(real: Any, does: Any) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        check_call(real, arguments, named)
        if does is None:
            raise NotImplementedError(f"{real.__name__} is not simulated here")
        return does(*arguments, **named)

    return call
