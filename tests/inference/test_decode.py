"""Laws of row decoding: the order and the company of windows change nothing in a row's answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from dynamorouter.inference.decode import RowDecoder
from dynamorouter.model.base.base import Base
from dynamorouter.model.heads.base import EncoderHead, build_head
from dynamorouter.utils.seeding import seeded
from support.builders import ASK, MOOD, NAMES

LONG = " ".join(["the film was dull and the team won"] * 6)
ROWS = [("a good film", None), (LONG, None), ("who won ?", LONG), ("Ann met Bob", None), ("nobody reads this", None)]
TASKS = [MOOD, NAMES, ASK, NAMES, MOOD]


def test_windows_in_any_order_and_company_give_each_row_its_own_answer(tiny_base: Callable[..., Base]) -> None:
    base = tiny_base()
    heads: dict[str, EncoderHead] = {}
    for task in (MOOD, NAMES, ASK):
        head = build_head(task, base.width).initialise(seeded(0, task.name)).eval()
        assert isinstance(head, EncoderHead)
        heads[task.name] = head
    own = [heads[task.name] for task in TASKS]
    windows = [(w.row, w) for w in base.encoder.windows(ROWS, max_tokens=24, stride=4) if w.row != 4]
    assert {row for row, window in windows if window.part} == {1, 2}, "two rows are read in several windows"

    def read(order: list[int], size: int) -> RowDecoder:
        decoder = RowDecoder(ROWS, [*own[:4], None])
        with torch.inference_mode():
            for first in range(0, len(order), size):
                chosen = [windows[i] for i in order[first : first + size]]
                batch = base.encoder.collate([window.encoding for _, window in chosen], base.device)
                decoder.add(base.forward(batch, None), batch.mask, chosen)
        return decoder

    alone = read(list(range(len(windows))), 1).answers()
    assert [answer is not None for answer in alone] == [True, True, True, True, False]
    order = list(range(len(windows)))
    for seed, size in ((0, 3), (1, 5), (2, len(windows))):
        random.Random(seed).shuffle(order)
        for one, other in zip(alone, read(order, size).answers(), strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                assert one.value == other.value and one.score == pytest.approx(other.score, abs=1e-5)
