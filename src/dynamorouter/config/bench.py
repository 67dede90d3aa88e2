"""Settings of the comparison: which arms, how many seeds, and how much is spent on tuning, statistics and studies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dynamorouter.utils.options import Alias, Count, Later, Number, Options, Rate, Size, Weight

ARMS = ("*",)
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class StudyConfig(Options):
    """Measurements beside the arms, made on the first seed and the validation rows."""

    coefficients: tuple[Weight, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
    """Coefficients of task arithmetic that are swept; empty for no sweep."""
    densities: tuple[Annotated[Number, Field(gt=0.0, le=1.0)], ...] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Densities of TIES that are swept."""
    ranks: tuple[Count, ...] = (1, 2, 4, 8, 16, 32)
    """Ranks to which the mean of the experts' changes is cut."""
    pairs: str | None = "linear"
    """Method by which every two experts are merged to see what each loses; ``null`` for none."""
    unseen_rows: Size = 64
    """Train rows for the head of a task that no expert was trained on, each task left out in turn; 0 for none."""
    layers: bool = True
    """Spectra of the experts' changes and the angles between them, per layer."""


class BenchConfig(Options):
    """The comparison: arms by seeds by tasks."""

    enabled: bool = False
    """Whether ``run`` is the comparison."""
    system: str | None = None
    """Folder of a saved system whose experts are compared; ``None`` trains experts for every seed."""
    arms: Names = ARMS
    """Names of arms or patterns such as ``merge/*``; one that begins with ``-`` takes away."""
    seeds: Count = 3
    """Runs that differ in initial weights and in the order of the rows; the rows are the same."""
    keep_seen: Annotated[bool, Later()] = False
    """Whether test rows that the experts have learned from are scored, too; the report says so."""
    evaluations: Count = 8
    """Scorings of validation rows that the tuning of each merge may take."""
    tune_rows: Count = 60
    """Select rows of each task that merges are tuned on."""
    output: str = "exact"
    """What is kept of a merged change: ``exact``, ``rank=K`` or ``energy=P``."""
    full_learning_rate: Rate = 5e-5
    """Peak learning rate of full fine-tuning; the heads take that of the experts."""
    resamples: Annotated[Count, Alias("n_resamples")] = 2000
    """Resamples of the bootstrap."""
    permutations: Annotated[Count, Alias("n_permutations")] = 10000
    """Random exchanges of a paired test."""
    level: Annotated[Number, Field(gt=0.0, lt=1.0), Alias("confidence_level")] = 0.95
    """Level of intervals; tests are called significant below one minus it."""
    diagram: Names = (
        "oracle",
        "router/own",
        "router/knn",
        "joint",
        "full",
        "probe",
        "base",
        "merge/factor_average",
        "merge/linear",
        "merge/task_arithmetic",
        "merge/ties",
        "merge/knots",
        "merge/tsv",
        "merge/iso_c",
    )
    """Arms of the critical difference diagram."""
    studies: StudyConfig = StudyConfig()
    """Measurements beside the arms."""
