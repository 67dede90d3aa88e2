"""Settings of experts that write text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dynamorouter.utils.options import Count, Options, Size, Weight

Kind = Literal["auto", "encoder", "decoder", "seq2seq"]
"""Kinds of base; ``auto`` goes by the checkpoint's own config."""
Packing = bool | Literal["auto"]
SelectBy = Literal["loss", "metric"]


class GenerationSettings(Options):
    """How an expert that writes does so."""

    max_new_tokens: Count = 64
    """Longest text, in tokens; its prompt has ``max_tokens`` beside it."""
    temperature: Weight = 0.0
    """0 for greedy; above that tokens are drawn, the more freely the higher."""
    top_k: Size = 0
    """Draw among so many of the likeliest tokens; 0 for all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw among the likeliest tokens that make up this share of the probability."""
    no_repeat_ngram: Size = 0
    """No run of so many tokens is written twice; 0 allows all. The prompt does not count."""
    repetition_penalty: Annotated[float, Field(gt=0.0)] = 1.0
    """Above 1 what is written already becomes less likely."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end the writing; they are left out of the answer."""
