"""What a causal language model writes after a prompt: whole texts in batches, or one text piece by piece.

Both work on a plain Transformers model, by its own `generate()`, and say the same of the same prompt, whatever else is in the batch.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from lora_a2.errors import DataError
from lora_a2.tasks.causal_lm.sampling import logits_processors
from lora_a2.tasks.causal_lm.sampling_options import SamplingOptions
from lora_a2.tasks.causal_lm.stopping import positions, stop_ids, vocabulary_size

__all__ = ["SamplingOptions", "generate_texts", "stream_text"]

_BROKEN = "\ufffd"
"""What a tokenizer decodes half of a character to."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token for a byte, which may turn out to be a part of a character, or of none."""


@dataclass(frozen=True)
class _Job:
    """One call: a model, its tokenizer, and how to write."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: SamplingOptions
    stops: tuple[int, ...]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of new tokens, without special ones."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def until_stop(self, ids: Sequence[int]) -> list[int]:
        """What stands before the first stop."""
        end = next((i for i, token in enumerate(ids) if token in self.stops), len(ids))
        return list(ids[:end])


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[np.ndarray],
    options: SamplingOptions | None = None,
    batch_size: int = 8,
    first: int = 1,
) -> list[str]:
    """What `model` writes after each of `prompts`, (length,) int64 each, in their order.

    An answer ends at a stop token, which is not part of it, after `max_new_tokens`, or at the model's last position.
    Messages number the prompts from `first` on. Recurrent models take one prompt at a time, whatever the batch size.

    Raises:
        DataError: a prompt is empty, holds ids that the model does not know, or leaves no position for an answer.
    """
    job = _job(model, tokenizer, options)
    rooms = [_room(job, prompt, number) for number, prompt in enumerate(prompts, first)]
    texts = [""] * len(prompts)
    recurrent = getattr(
        model, "_is_stateful", False
    )  # not all of these heed the mask: RWKV's rows see padding and each other
    with _ready(model) as ready:
        for rows in _batches(prompts, rooms, 1 if recurrent else batch_size):
            answers = _write(job, ready, [prompts[i] for i in rows], rooms[rows[0]])
            for i, answer in zip(rows, answers, strict=True):
                texts[i] = job.decode(job.until_stop(answer))
    return texts


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: np.ndarray,
    options: SamplingOptions | None = None,
) -> Generator[str, None, None]:
    """The answer to `prompt`, (length,) int64, in pieces as they are written; together they are that of `generate_texts`.

    Beams are compared at their end, so that with several the answer is one piece. A thread computes while the pieces are
    taken; it ends with the iterator: when that is exhausted, closed, or left by an exception.

    Raises:
        DataError: as in `generate_texts`, at once.
    """
    job = _job(model, tokenizer, options)
    room = _room(job, prompt, 1)
    return _whole(job, prompt) if job.options.num_beams > 1 else _pieces(job, prompt, room)


def _job(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: SamplingOptions | None) -> _Job:
    return _Job(model, tokenizer, options or SamplingOptions(), stop_ids(model, tokenizer))


def _room(job: _Job, prompt: np.ndarray, number: int) -> int:
    """The most new tokens after `prompt`; at least one."""
    name, size, limit = f"Prompt {number}", vocabulary_size(job.model), positions(job.model)
    if prompt.ndim != 1 or prompt.dtype.kind not in "iu" or not len(prompt):
        raise DataError(f"{name} should be a list of token ids, one or more; it is {prompt.dtype} {prompt.shape}.")
    if prompt.min() < 0 or prompt.max() >= size:
        raise DataError(f"{name} has a token id that the model does not know: its ids are 0 to {size - 1}.")
    if limit is None:
        return job.options.max_new_tokens
    if len(prompt) >= limit:
        raise DataError(
            f"{name} has {len(prompt)} tokens, and the model has {limit} positions for prompt and answer: shorten it."
        )
    return min(job.options.max_new_tokens, limit - len(prompt))


def _batches(prompts: Sequence[np.ndarray], rooms: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows of about equal length, the longest first, and of one room: a row cannot go on beyond its last position."""
    batch: list[int] = []
    for i in sorted(range(len(prompts)), key=lambda i: (rooms[i], -len(prompts[i]), i)):
        if batch and (len(batch) == batch_size or rooms[i] != rooms[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def _ready(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model in evaluation mode, without its own generation config, from which `generate()` takes what it is not told.

    It is another object with the same weights: `model` keeps its configuration, which others may read meanwhile.
    """
    bare = copy.copy(model)
    bare.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    training = [module for module in bare.modules() if module.training]
    bare.eval()  # type: ignore[no-untyped-call]
    try:
        yield bare
    finally:
        for module in training:
            module.training = True


def _write(
    job: _Job, model: PreTrainedModel, prompts: Sequence[np.ndarray], room: int, streamer: BaseStreamer | None = None
) -> list[list[int]]:
    """The new tokens of each prompt, with what follows a stop."""
    pad = job.stops[0] if job.stops else 0  # never looked at
    length = max(map(len, prompts))
    ids = np.full((len(prompts), length), pad, np.int64)
    mask = np.zeros((len(prompts), length), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    written: Any = model.generate(  # type: ignore[operator]
        torch.from_numpy(ids).to(model.device),
        attention_mask=torch.from_numpy(mask).to(model.device),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=room,
            do_sample=False,  # draws are noise in the logits
            num_beams=job.options.num_beams,
            eos_token_id=list(job.stops) or None,
            pad_token_id=pad,
        ),
        logits_processor=logits_processors(prompts, job.options),
        streamer=streamer,
    )
    rows: list[list[int]] = written[:, length:].tolist()
    return rows


class _Closed(Exception):
    """Nobody reads the stream any more."""


class _Tokens(BaseStreamer):
    """Hands tokens from the thread that computes them to the one that reads them; None after the last."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | None] = SimpleQueue()
        self.closed = False
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate()`, first with the prompt, then with every token."""
        if self.closed:
            raise _Closed
        if self._prompt_seen:
            self.queue.put(int(value.item()))
        self._prompt_seen = True

    def end(self) -> None:
        """Called by `generate()`; the thread tells the end, after errors too."""


def _whole(job: _Job, prompt: np.ndarray) -> Generator[str, None, None]:
    (text,) = generate_texts(job.model, job.tokenizer, [prompt], job.options)
    if text:
        yield text


def _pieces(job: _Job, prompt: np.ndarray, room: int) -> Generator[str, None, None]:
    written, ids = "", list[int]()
    with closing(_computed(job, prompt, room)) as tokens:
        for token in tokens:
            if token in job.stops:
                break
            ids.append(token)
            text = "" if _is_byte(job.tokenizer, token) else job.decode(ids)
            if text.startswith(written) and len(text) > len(written) and not text.endswith(_BROKEN):
                yield text[len(written) :]
                written = text
    if rest := job.decode(ids)[len(written) :]:
        yield rest


def _is_byte(tokenizer: PreTrainedTokenizerBase, token: int) -> bool:
    name = tokenizer.convert_ids_to_tokens(token)
    return isinstance(name, str) and _BYTE.fullmatch(name) is not None


def _computed(job: _Job, prompt: np.ndarray, room: int) -> Generator[int, None, None]:
    """New tokens as a thread computes them; the thread has ended when the iterator has."""
    tokens, errors = _Tokens(), list[BaseException]()

    def compute() -> None:
        try:
            with _ready(job.model) as ready:
                _write(job, ready, [prompt], room, tokens)
        except _Closed:
            pass
        except BaseException as error:  # raised again where the tokens are read
            errors.append(error)
        finally:
            tokens.queue.put(None)

    thread = threading.Thread(target=compute, name="generation")
    thread.start()
    try:
        while (token := tokens.queue.get()) is not None:
            yield token
    finally:
        tokens.closed = True
        thread.join()
    if errors:
        raise errors[0]
