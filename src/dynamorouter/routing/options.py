"""The options of a router: the keyword arguments of its constructor, checked by how they are annotated."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from dynamorouter.errors import ConfigError, RouterError, one_of, suggest
from dynamorouter.routing.registry import routers
from dynamorouter.utils.explain import Branch, checked, explain
from dynamorouter.utils.options import Number, Options, Whole

if TYPE_CHECKING:
    from dynamorouter.routing.base import Router

T = TypeVar("T", bound=Options)


class ConstructorOptions(Options):
    """The base of what is read off a constructor, whose annotations may be of any class."""

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())


@cache
def options_of(router: type[Router]) -> type[Options]:
    """Return the settings that a router's constructor takes: its ``option_model``, or as its arguments are annotated.

    An annotation that only a type checker can read, since its names are not imported at run time, allows anything.
    """
    if router.option_model is not None:
        return router.option_model
    parameters = inspect.signature(router).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    declared = [option.name for option in fields(router)] if is_dataclass(router) else list[str]()
    is_generated = all(parameter.name in declared for parameter in named)
    try:
        hints = get_type_hints(router if is_generated else router.__init__, include_extras=True)
    except NameError:
        hints = {}
    arguments: dict[str, Any] = {}
    for parameter in named:
        hint = hints.get(parameter.name, Any)
        number = Whole if hint is int else Number if hint is float else hint  # true and false are no numbers
        arguments[parameter.name] = (number, ... if parameter.default is inspect.Parameter.empty else parameter.default)
    return create_model(f"{router.__name__}Options", __base__=ConstructorOptions, **arguments)


def router_options(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Take from the settings of all routers what this kind understands; its own ``options`` come on top."""
    allowed = options_of(routers.get(kind)).model_fields
    options = {name: value for name, value in settings.items() if name in allowed}
    if "layer" in allowed and settings.get("layers"):
        options["layer"] = max(settings["layers"])
    return {**options, **settings.get("options", {})}


def option_mistakes(router: type[Router], options: Mapping[str, Any]) -> dict[str, str]:
    """Return by name what is wrong with options: unknown, missing, of another type or out of range."""
    model = options_of(router)
    allowed = [*model.model_fields, *model.aliases()]
    mistakes = {
        name: f"unknown option {name!r}{suggest(name, allowed)}; allowed: {one_of(model.model_fields) or 'none'}"
        for name in options
        if name not in allowed
    }
    try:
        model.model_validate({name: value for name, value in options.items() if name in allowed})
    except ValidationError as error:
        lines = explain(error, options, root=Branch(model))
        mistakes |= {name: reason for name, _, reason in (line.partition(": ") for line in lines)}
    return mistakes


def checked_options(model: type[T], options: Mapping[str, Any], *, kind: str) -> T:
    """Return the options that a constructor was given, lists as the tuples that they stand for.

    Args:
        model: what the constructor takes.
        options: values by name.
        kind: of router, for messages.

    Raises:
        RouterError: an option is unknown, of the wrong type or out of range; the message names every mistake.
    """
    try:
        return checked(model, options, what=f"the options of a {kind} router")
    except ConfigError as error:
        raise RouterError(str(error)) from None
