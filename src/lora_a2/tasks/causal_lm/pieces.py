"""A tokenizer that tells where its tokens stand, and adds nothing of its own unless asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_a2.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]
"""Of each token, the first character and the one behind the last."""

_ANCHORS = ("\n", ".", "a", "1")


class Pieces:
    """Texts as token ids.

    Raises:
        ModelError: the tokenizer is of the slow kind.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):  # not all kinds know the word
            raise ModelError(
                f"The tokenizer is a {type(tokenizer).__name__}, which does not tell where its tokens stand in a text: give the "
                "model a fast one (tokenizer.json)."
            )
        self._tokenizer = tokenizer
        self._added = {int(i): token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self._opening = self._find_opening()
        # Some put a blank before every text; what goes on with one needs something before it, then.
        self._anchors = () if self.split("\na")[0] == self.split("\n")[0] + self.split("a")[0] else _ANCHORS

    @property
    def end(self) -> int:
        """The token for the end of a text.

        Raises:
            ModelError: there is none.
        """
        if self._tokenizer.eos_token_id is None:
            raise ModelError("The tokenizer has no token for the end of a text (eos_token), which is to be learnt.")
        return int(self._tokenizer.eos_token_id)

    def split(self, text: str) -> tuple[list[int], Offsets]:
        """Token ids of a text and where each stands in it."""
        given: Any = self._tokenizer
        found = given(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), [tuple(pair) for pair in found["offset_mapping"]]

    def split_at(self, text: str, place: int) -> tuple[list[int], Offsets, int]:
        """As `split`, and how many tokens stand before `place`: exactly those that the text up to there has alone.

        That is what a model is given that is to go on from there. A token that would reach across is cut in two.
        """
        ids, offsets = self.split(text)
        head, before = self.split(text[:place])
        if ids[: len(head)] == head and all(start >= place for start, _ in offsets[len(head) :]):
            return ids, offsets, len(head)
        tail, behind = self._going_on(text[place:])
        return [*head, *tail], [*before, *((start + place, end + place) for start, end in behind)], len(head)

    def _going_on(self, text: str) -> tuple[list[int], Offsets]:
        """As `split`, of a text that stands behind another: without the blank that some tokenizers put before a text."""
        for anchor in self._anchors:
            ids, offsets = self.split(anchor + text)
            size = len(anchor)
            first = sum(end <= size for _, end in offsets)
            if all(start >= size for start, _ in offsets[first:]):
                return ids[first:], [(start - size, end - size) for start, end in offsets[first:]]
        return self.split(text)

    def closes(self, token: int, text: str) -> bool:
        """Whether this token is an added one that the text ends with."""
        return token in self._added and text.endswith(self._added[token])

    def opened(self, ids: list[int]) -> list[int]:
        """Behind what the tokenizer puts before every text, such as a token for its beginning, unless that is there."""
        return ids if ids[: len(self._opening)] == self._opening else [*self._opening, *ids]

    def count_opening(self, ids: list[int]) -> int:
        """How many tokens at the beginning open every text."""
        if self._opening and ids[: len(self._opening)] == self._opening:
            return len(self._opening)
        return int(ids[:1] == [self._tokenizer.bos_token_id])

    def _find_opening(self) -> list[int]:
        with_all = list(self._tokenizer("a")["input_ids"])
        bare = self.split("a")[0]
        starts = range(len(with_all) - len(bare) + 1)
        return next((with_all[:start] for start in starts if with_all[start : start + len(bare)] == bare), [])
