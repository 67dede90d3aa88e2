"""Which linear layers experts may change."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dynamorouter.errors import ConfigError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.blocks import find_blocks

ATTENTION_NAMES = {
    *("query", "value", "q_proj", "v_proj", "q_lin", "v_lin", "query_proj", "value_proj", "q", "v"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv"),
}
"""Names that the supported architectures give to their query and value projections."""


def target_layers(base: Base, targets: str | Sequence[str], *, trunk_depth: int) -> list[str]:
    """List the linear layers above the trunk that ``targets`` name, and those of the decoder of an encoder-decoder.

    Args:
        base: whose layers they are.
        targets: ``"all-linear"``, ``"attention"`` (query and value), a regular expression for whole names, or a list of
            name endings, as PEFT takes them.
        trunk_depth: blocks below this one are left alone.

    Raises:
        ConfigError: nothing matches, or the trunk is deeper than the base.
    """
    if not 0 <= trunk_depth < base.depth:
        raise ConfigError(
            f"trunk_depth is {trunk_depth}, but base {base.spec.name!r} has {base.depth} blocks; "
            f"allowed are 0 to {base.depth - 1}"
        )
    blocks = [f"{base.blocks_name}.{index}." for index in range(trunk_depth, base.depth)]
    if base.parts.decoder is not None:
        blocks.append(f"{base.decoder_name}.{find_blocks(base.parts.decoder)[0]}.")
    candidates = [name for name in base.linear if name.startswith(tuple(blocks))]
    layers = [name for name in candidates if matches(name, targets)]
    if not layers:
        endings = sorted({name.rsplit(".", 1)[-1] for name in candidates})
        raise ConfigError(
            f"targets={targets!r} match no linear layer of base {base.spec.name!r} from block {trunk_depth} up; "
            f"there are {', '.join(endings)}, or say 'all-linear' or 'attention'"
        )
    return layers


def matches(name: str, targets: str | Sequence[str]) -> bool:
    """Tell whether ``targets`` name a layer: a group, a regular expression for whole names, or name endings."""
    if targets == "all-linear":
        return True
    if targets == "attention":
        return name.rsplit(".", 1)[-1] in ATTENTION_NAMES
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == ending or name.endswith("." + ending) for ending in targets)
