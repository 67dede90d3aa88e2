"""Parts of the settings by the same overrides as recipes have, for what is done to a system without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dynamorouter.config.checks import listed
from dynamorouter.config.schema import ROOT
from dynamorouter.errors import ConfigError, one_of, suggest
from dynamorouter.routing.config import RouterConfig
from dynamorouter.training.config import ExpertConfig
from dynamorouter.utils.explain import explain, own_tree
from dynamorouter.utils.options import Options, Size


class _Parts(Options):
    """What may be overridden."""

    seed: Size = 0
    experts: ExpertConfig = ExpertConfig()
    router: RouterConfig = RouterConfig()


@dataclass(frozen=True, slots=True)
class Parts:
    """Settings of what is done to a system.

    Attributes:
        seed: of every random choice.
        experts: how an expert is trained; what was asked for is in ``model_fields_set``.
        router: how a router is fitted anew; ``None`` where nothing of it was asked for.
    """

    seed: int
    experts: ExpertConfig
    router: RouterConfig | None


def settings_of(overrides: Sequence[str], *, allowed: Sequence[str]) -> Parts:
    """Return settings from ``key.path=value`` words, such as ``experts.epochs=5``.

    Args:
        overrides: the words.
        allowed: what they may begin with, of ``seed``, ``experts`` and ``router``.

    Raises:
        ConfigError: a word is none of these, or a setting is unknown or wrong; the message names every mistake.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    mistakes = []
    words = []
    for word in overrides:
        key, equals, _ = word.partition("=")
        branch = key.partition(".")[0]
        if not equals:
            mistakes.append(f"{word!r} is no setting; write key=value, such as {allowed[-1]}.epochs=5")
        elif branch not in allowed:
            mistakes.append(f"{key}: nothing of that is set here{suggest(branch, allowed)}; allowed: {one_of(allowed)}")
        else:
            words.append(word)
    try:
        values: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(listed([*mistakes, f"the settings {words} cannot be read: {error}"])) from error
    tree, clashes = own_tree({str(key): value for key, value in values.items()}, ROOT)
    try:
        parts = _Parts.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(listed([*mistakes, *clashes, *explain(error, tree, root=ROOT)])) from None
    if mistakes or clashes:
        raise ConfigError(listed([*mistakes, *clashes]))
    return Parts(parts.seed, parts.experts, parts.router if "router" in tree else None)
