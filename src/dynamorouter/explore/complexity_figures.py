"""The figure of a survey: a histogram of every feature and of the score, with the tiers' cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamorouter.explore.complexity import Survey
from dynamorouter.report.style import COLOURS, drawn, panels

CUT_COLOURS = {"thresholds": COLOURS[3], "quantile": COLOURS[2]}
BINS = 30


def draw(survey: Survey, *, form: str = "png") -> bytes:
    """Return all distributions in one figure, as ``png`` or ``svg``."""
    return drawn(lambda plt: _figure(plt, survey), form=form)


def _figure(plt: Any, survey: Survey) -> Any:
    columns = survey.columns()
    figure, axes = panels(plt, len(columns) + 1, across=4, width=3.0, height=2.1)
    for axis, (name, values) in zip(axes, columns.items(), strict=False):
        axis.hist(values, bins=BINS)
        axis.set_title(name.replace("_", " "))
        if name == "score":
            for method, colour in CUT_COLOURS.items():
                for i, cut in enumerate(survey.cuts.get(method, ())):
                    axis.axvline(cut, color=colour, linestyle="--", label=method if i == 0 else None)
            axis.legend()
    tiers = axes[-1]
    width = 0.8 / max(1, len(survey.tiers))
    for i, (method, tier_of_rows) in enumerate(survey.tiers.items()):
        counts = np.bincount(tier_of_rows, minlength=len(survey.names))
        tiers.bar(np.arange(len(survey.names)) + i * width, counts, width=width, label=method)
    tiers.set_xticks(np.arange(len(survey.names)) + 0.4 - width / 2, survey.names)
    tiers.set_title("rows by tier")
    tiers.legend()
    return figure
