"""The laws of prompts."""

from __future__ import annotations

from typing import Any, ClassVar

from dynamorouter.model.text.prompts import prompts
from dynamorouter.testing.contract import Contract, require


class PromptContract(Contract):
    """The laws of prompts.

    Attributes:
        form: the function, as ``staticmethod(function)``.
        tokenizer: what it is given; only forms that a tokenizer defines read it.
    """

    form: ClassVar[staticmethod[[str, str | None, Any], str]]
    tokenizer: ClassVar[Any] = None

    def test_is_what_the_registry_takes(self) -> None:
        """It is a function."""
        require(not prompts.fault(self.form), prompts.fault(self.form))

    def test_a_prompt_holds_the_row(self) -> None:
        """Text and pair are in the prompt as they are, the text first."""
        for pair in (None, "the second text"):
            prompt = self.form("the first text", pair, self.tokenizer)
            require("the first text" in prompt, "the text is not in the prompt")
            require(pair is None or prompt.index(pair) > prompt.index("the first text"), "the pair is not after it")

    def test_the_same_row_has_the_same_prompt(self) -> None:
        """Nothing is drawn, and rows that differ have prompts that differ."""
        one, same, other = (self.form(text, None, self.tokenizer) for text in ("this", "this", "that"))
        require(one == same, "two prompts of one row differ")
        require(one != other, "two rows have one prompt")

    def test_a_text_is_not_taken_for_a_template(self) -> None:
        """Braces and percent signs of a row are its own."""
        odd = "{0} {text} %s {{x}} 100%"
        require(odd in self.form(odd, None, self.tokenizer), "signs of the row were taken for those of a template")
