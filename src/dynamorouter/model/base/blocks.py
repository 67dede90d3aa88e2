"""The transformer blocks of a model, and passes that see only some of them.

A pass is cut by showing the model a shorter list of its own blocks and by hooks on them, so that masks, positions,
embeddings and norms stay the model's own code.

Letters: B batch, S positions, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dynamorouter.errors import ConfigError


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Ends a pass at the trunk."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the model's transformer blocks: its longest ``ModuleList``.

    Raises:
        ConfigError: there is none.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of blocks, so there is no place for a trunk or experts")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def name_inside(model: nn.Module, stack: nn.Module) -> str:
    """Return the name that a stack has in its model; the model itself has none."""
    return next(str(path) for path, module in model.named_modules() if module is stack)


class Blocks:
    """The blocks of one stack of a model.

    Args:
        stack: the encoder or decoder that runs them one after another.

    Raises:
        ConfigError: it has no list of blocks.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.name, self.list = find_blocks(stack)
        path, _, self._leaf = self.name.rpartition(".")
        self._parent = stack.get_submodule(path)
        self._config: Any = getattr(stack, "config", None)

    def __len__(self) -> int:
        return len(self.list)

    @contextmanager
    def slice(self, first: int, last: int) -> Iterator[None]:
        """Let the stack see only blocks ``first`` to ``last - 1`` for a while."""
        if (first, last) == (0, len(self)):
            yield
            return
        shown = list(self.list)[first:last]
        kinds = getattr(self._config, "layer_types", None)  # looked up by a block's place in the list
        setattr(self._parent, self._leaf, nn.ModuleList(shown))
        if kinds is not None:
            self._config.layer_types = kinds[first:last]
        try:
            with _lend_position_bias(self.list[0], shown[0]):
                yield
        finally:
            setattr(self._parent, self._leaf, self.list)
            if kinds is not None:
                self._config.layer_types = kinds

    @contextmanager
    def capture(self, layers: Collection[int], states: dict[int, Tensor]) -> Iterator[None]:
        """Note the inputs of blocks and the output of the deepest one; stop the pass once all is there."""
        deepest = max(layers)

        def before(layer: int) -> Any:
            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                states[layer] = args[0] if args else kwargs["hidden_states"]
                if layer == deepest:
                    raise StopForward

            return note

        def after(_: nn.Module, __: Any, output: Any) -> None:
            states[deepest] = output[0] if isinstance(output, tuple) else output
            raise StopForward

        hooks = [
            self.list[layer].register_forward_pre_hook(before(layer), with_kwargs=True)
            for layer in layers
            if layer < deepest or deepest == 0
        ]
        if deepest > 0:
            hooks.append(self.list[deepest - 1].register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def inject(self, first: int, hidden: Tensor) -> Iterator[None]:
        """Give block ``first`` the hidden states ``(B, S, D)`` in place of what it would get."""

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        hook = self.list[first].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def _lend_position_bias(owner: nn.Module, user: nn.Module) -> Iterator[None]:
    """Let the first block that runs compute T5's relative positions, which all blocks share and only block 0 has."""
    lent = []
    for name, attention in owner.named_modules():
        borrower: Any = dict(user.named_modules()).get(name)
        lends = getattr(attention, "has_relative_attention_bias", False)
        if lends and borrower is not None and not getattr(borrower, "has_relative_attention_bias", True):
            borrower.has_relative_attention_bias = True
            borrower.relative_attention_bias = attention.relative_attention_bias
            lent.append(borrower)
    try:
        yield
    finally:
        for borrower in lent:
            borrower.has_relative_attention_bias = False
            del borrower.relative_attention_bias
