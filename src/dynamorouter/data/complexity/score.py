"""From features to one score between 0 and 1: each feature over its cap, at most one, weighted.

The score that makes tiers is computed on instruction and input alone. The response's length, which has a weight of
its own, is left out of it and the other weights are scaled up to sum to one; ``analysis_score`` puts it back, for
looking at data and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from dynamorouter.data.complexity.features import NAMES, Features
from dynamorouter.errors import ConfigError, one_of, suggest

RESPONSE = "response_length"
"""The one part that reads the answer."""
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"length": 0.2, "syntactic": 0.3, "semantic_diversity": 0.15, "dependency_depth": 0.15, RESPONSE: 0.2}
)
CAPS: Mapping[str, float] = MappingProxyType(
    {
        "length": 50.0,
        "syntactic": 10.0,
        "semantic_diversity": 30.0,
        "dependency_depth": 10.0,
        "syntactic_depth": 5.0,
        "clauses": 10.0,
        "entity_density": 1.0,
        "vocabulary_richness": 8.0,
        "readability": 12.0,
        RESPONSE: 100.0,
    }
)
"""The value of each feature from which on it counts in full; words, arcs, clauses, school years."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How features make a score.

    Attributes:
        weights: of features by name, and of ``response_length``; those that are absent count nothing.
        caps: the value at which a feature counts in full.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))
    caps: Mapping[str, float] = field(default_factory=lambda: dict(CAPS))

    def __post_init__(self) -> None:
        """Check all weights and caps at once.

        Raises:
            ConfigError: a name is unknown, a weight negative, a cap not positive, or nothing has a weight.
        """
        allowed = (*NAMES, RESPONSE)
        mistakes = [
            f"{name!r} is no feature{suggest(name, allowed)}; allowed: {one_of(allowed)}"
            for name in dict.fromkeys([*self.weights, *self.caps])
            if name not in allowed
        ]
        mistakes += [f"the weight of {name} is {value}; 0 or more is allowed" for name, value in self.weights.items()
                  if value < 0]  # fmt: skip
        mistakes += [f"the cap of {name} is {value}; more than 0 is allowed" for name, value in self.caps.items()
                  if value <= 0]  # fmt: skip
        mistakes += [f"{name} has a weight but no cap; give one" for name, value in self.weights.items()
                  if value and name in allowed and name not in self.caps]  # fmt: skip
        if not mistakes and sum(value for name, value in self.weights.items() if name != RESPONSE) <= 0:
            mistakes = ["no feature of the instruction has a weight; give one"]
        if mistakes:
            raise ConfigError("complexity score: " + "; ".join(mistakes))


def score(features: Features, options: ScoreOptions) -> float:
    """Return the score of an instruction, 0 to 1: what tiers are made of and the router learns to estimate."""
    parts = {name: weight for name, weight in options.weights.items() if name != RESPONSE}
    total = sum(weight * _capped(getattr(features, name), options.caps[name]) for name, weight in parts.items())
    return total / sum(parts.values())


def analysis_score(features: Features, response_words: int, options: ScoreOptions) -> float:
    """Return the score with the response's length in it, 0 to 1, for tables and plots alone."""
    instruction_weight = sum(weight for name, weight in options.weights.items() if name != RESPONSE)
    answer = options.weights.get(RESPONSE, 0.0)
    words = _capped(float(response_words), options.caps.get(RESPONSE, CAPS[RESPONSE]))
    return (score(features, options) * instruction_weight + words * answer) / (instruction_weight + answer)


def _capped(value: float, cap: float) -> float:
    return min(1.0, max(0.0, value / cap))
