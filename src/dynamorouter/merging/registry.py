"""Merge methods by name: each one function ``(deltas, weights, **options) -> delta`` for one layer.

A method says which paper it follows, which weights it takes by default, which laws it keeps and what it needs beside
the experts. Methods that look at all layers before the first is merged have a survey, which may set the weights of
each layer and further options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.merging.deltas import Delta, LayerDeltas, Layers
from dynamorouter.registry import Registry

Law = Literal["one", "identical", "order", "scaling", "gauge"]
LAWS: Mapping[Law, str] = {
    "one": "one expert with weight one comes back",
    "identical": "identical experts, with the default weights, come back",
    "order": "the order of the experts changes nothing",
    "scaling": "scaling every expert's change scales the result alike",
    "gauge": "writing an expert as B R and R^-1 A changes nothing",
}
Need = Literal["grams", "fisher", "objective", "entropy"]
NEEDS: Mapping[Need, str] = {
    "grams": "second moments of every layer's inputs, on rows of each expert's own task",
    "fisher": "squared gradients of every layer's weights, on rows of each expert's own task",
    "objective": "a function from factors to a loss, on a few labelled rows",
    "entropy": "a function from coefficients to the entropy of the answers, on unlabelled rows",
}
PRIVATE = ("seed", "thresholds", *NEEDS)
"""Options that are set by the caller or a survey, and not by the user."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a survey of all layers has found.

    Attributes:
        weights: by layer, ``(E,)``; layers that are not named keep the given weights.
        options: further options by layer.
        notes: for people.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Survey = Callable[..., Plan]
"""``(layers, weights, **options) -> Plan``."""


@dataclass(frozen=True, slots=True)
class Method:
    """A way to merge.

    Attributes:
        name: what it is asked for by.
        function: ``(deltas, weights, **options) -> delta`` for one layer.
        paper: where it is from.
        about: one line on what it does.
        weights: the default weight of each of E experts: ``"mean"`` is 1/E, ``"ones"`` is 1.
        laws: what it keeps.
        plain: options under which the laws ``one`` and ``identical`` hold.
        needs: what it needs beside the experts.
        survey: looks at all layers first.
        experts: the number of experts that it takes; 0 for any.
    """

    name: str
    function: Callable[..., Delta]
    paper: str
    about: str
    weights: Literal["mean", "ones"]
    laws: frozenset[Law]
    plain: Mapping[str, Any]
    needs: Need | None
    survey: Survey | None
    experts: int

    def __call__(self, deltas: LayerDeltas, weights: Tensor, **options: Any) -> Delta:
        """Merge one layer."""
        return self.function(deltas, weights, **options)

    def plan(self, layers: Layers, weights: Tensor, **options: Any) -> Plan:
        """Look at all layers, where the method does; options that are the survey's own do not reach the function."""
        if self.survey is None:
            return Plan()
        return self.survey(layers, weights, **{k: v for k, v in options.items() if k in _keywords(self.survey)})

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return "seed" in {**_keywords(self.function), **self._surveyed()}

    @property
    def options(self) -> dict[str, Any]:
        """What can be set, with its defaults."""
        keywords = {**_keywords(self.function), **self._surveyed()}
        return {name: value for name, value in keywords.items() if name not in PRIVATE}

    def takes(self, name: str) -> bool:
        """Tell whether the method's function has an option."""
        return name in _keywords(self.function)

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse what the method does not know.

        Raises:
            ConfigError: an option is unknown, or what the method needs is not given.
        """
        known_options = self.options
        allowed = {*known_options, "seed", *({self.needs} if self.needs else ())}
        for name in options:
            if name not in allowed:
                defaults = ", ".join(f"{key}={value}" for key, value in known_options.items()) or "none"
                raise ConfigError(
                    f"merge method {self.name!r} has no option {name!r}{suggest(name, known_options)}; "
                    f"its options: {defaults}"
                )
            if name in known_options:
                self._check_value(name, options[name])
        if self.needs and options.get(self.needs) is None:
            raise ConfigError(
                f"merge method {self.name!r} needs {self.needs}: {NEEDS[self.needs]}; "
                "give rows with --data DIR, or see dynamorouter.merging.calibration, "
                "or take a method that needs no data: "
                f"{one_of(name for name, method in merges.items() if method.needs is None)}"
            )

    def _check_value(self, name: str, value: Any) -> None:
        """Refuse a value that is not of the type that the option is declared with, or no finite number."""
        hint = {**_hints(self.function), **(_hints(self.survey) if self.survey else {})}[name]
        strict = ConfigDict(strict=True, allow_inf_nan=False)
        try:
            TypeAdapter(hint, config=strict).validate_python(value)
        except ValidationError as error:
            raise ConfigError(
                f"merge method {self.name!r}: option {name} is {value!r}: {error.errors()[0]['msg'].lower()}; its "
                f"default is {self.options[name]!r}"
            ) from error

    def _surveyed(self) -> dict[str, Any]:
        return _keywords(self.survey) if self.survey else {}


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function)


merges: Registry[Method] = Registry(
    "merge method",
    "dynamorouter.merging.methods",
    group="merges",
    contract="dynamorouter.merging.registry:Method",
    instances=True,
    decorator="merge_method",
)


def merge_method(
    name: str,
    *,
    paper: str,
    weights: Literal["mean", "ones"] = "mean",
    laws: tuple[Law, ...] = ("one", "identical", "order", "scaling", "gauge"),
    plain: Mapping[str, Any] | None = None,
    needs: Need | None = None,
    survey: Survey | None = None,
    experts: int = 0,
) -> Callable[[Callable[..., Delta]], Method]:
    """Return a decorator that makes a method of a function and registers it.

    The first line of the function's docstring says what it does; the arguments are those of ``Method``.
    """

    def add(function: Callable[..., Delta]) -> Method:
        about = (inspect.getdoc(function) or "").partition("\n")[0]
        method = Method(
            name, function, paper, about, weights, frozenset(laws), dict(plain or {}), needs, survey, experts
        )
        return merges.register(name, home=function.__module__)(method)

    return add


def check_shares(method: str, weights: Tensor) -> None:
    """Refuse weights ``(E,)`` that are no shares of a mean.

    Raises:
        ConfigError: one is negative, or all are zero.
    """
    if (weights < 0).any() or not (weights > 0).any():
        raise ConfigError(f"{method}'s weights are {weights.tolist()}; they must not be negative, nor all zero")
