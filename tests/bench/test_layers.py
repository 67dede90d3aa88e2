"""The study of the layers and its picture, for experts that change different layers."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dynamorouter.bench.report.layer_figures import MOST_TICKS, block_of, layers, mean_cosines, mean_overlaps
from dynamorouter.bench.studies import layers as study_layers
from dynamorouter.model.lora.factors import Factors

NAMES = [
    *(f"encoder.layer.{block}.attention.self.{part}" for block in range(18) for part in ("query", "value")),
    "pooler.dense",
]


def study(layers_by_expert: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the rows of the study for experts with random factors in these layers."""
    generator = torch.Generator().manual_seed(0)

    def factors() -> Factors:
        return Factors(torch.randn(2, 8, generator=generator), torch.randn(8, 2, generator=generator), scaling=1.0)

    experts = [
        SimpleNamespace(name=name, factors={layer: factors() for layer in names})
        for name, names in layers_by_expert.items()
    ]
    return list(study_layers(SimpleNamespace(system=SimpleNamespace(experts=experts))))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Return the study of one expert in all layers, and two in halves that share none."""
    return study({"all": NAMES, "even": NAMES[0:8:2], "odd": NAMES[1:8:2]})


def test_an_expert_is_like_itself_and_nobody_where_there_is_no_layer_in_common(rows: list[dict[str, Any]]) -> None:
    cosines = mean_cosines(rows)
    assert np.diag(cosines) == pytest.approx(1.0)
    shared = [row["cosine"][0][1] for row in rows if row["layer"] in NAMES[0:8:2]]
    assert cosines[0, 1] == pytest.approx(np.mean(shared)) and len(shared) == 4
    assert np.isnan(cosines[1, 2])
    assert [row["cosine"][0][1] for row in rows if row["layer"] == NAMES[1]] == [None]


def test_zeros_of_older_rows_count_for_nothing(rows: list[dict[str, Any]]) -> None:
    older = [{**row, "cosine": [[value or 0.0 for value in line] for line in row["cosine"]]} for row in rows]
    assert mean_cosines(older) == pytest.approx(mean_cosines(rows), nan_ok=True)


def test_spans_are_compared_where_two_experts_change_the_layer(rows: list[dict[str, Any]]) -> None:
    overlaps = mean_overlaps(rows, "right")
    for row, overlap in zip(rows, overlaps, strict=True):
        other = 1 if row["layer"] in NAMES[0:8:2] else 2
        if row["layer"] in NAMES[:8]:
            assert overlap == pytest.approx(row["right"][0][other])
        else:
            assert np.isnan(overlap)


def test_the_picture_names_blocks_and_what_is_empty(rows: list[dict[str, Any]]) -> None:
    svg = layers(rows).decode()
    labels = re.findall(r">([^<>\n]+)</text>", svg)
    assert not any("query" in label for label in labels)
    blocks = [label for label in labels if label in {block_of(name) for name in NAMES}]
    assert {"0", "2", "16"} <= set(blocks) and len(blocks) <= MOST_TICKS + 10  # numbers of other axes are among them
    assert "empty: the two change no layer in common" in labels
    assert "empty: the two change no layer in common" not in layers(study({"a": NAMES[:2], "b": NAMES[:2]})).decode()


def test_blocks_by_name() -> None:
    assert block_of("encoder.layer.11.output.dense") == "11"
    assert block_of("transformer.h.3.mlp.c_fc") == "3"
    assert block_of("pooler.dense") == "pooler" and block_of("model.proj") == "proj"
