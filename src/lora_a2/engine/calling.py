"""Whether a backbone can be called as it is here: token ids and an attention mask in, a vector a token out."""

from __future__ import annotations

import inspect

import torch
from torch import nn
from transformers import PreTrainedModel

from lora_a2.errors import ModelError

_IDS = ((3, 4, 5, 6, 7, 8, 9), (3, 4, 5, 6, 0, 0, 0))
_MASK = ((1, 1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 0, 0, 0))


def vocabulary_size(backbone: PreTrainedModel) -> int:
    """Tokens for which a backbone has an embedding.

    Raises:
        ModelError: it has no table of them.
    """
    try:
        words = backbone.get_input_embeddings()
    except Exception:  # models without one raise what they like
        words = None
    if not isinstance(words, nn.Embedding):
        raise ModelError(
            f"{type(backbone).__name__} has no table of token embeddings: choose a model that reads tokens."
        )
    return int(words.num_embeddings)


def first_line(error: Exception) -> str:
    """What an error of a model says, in one line."""
    return " ".join((str(error) or type(error).__name__).split("\n")[0].split())


@torch.no_grad()
def hidden_width(backbone: PreTrainedModel) -> int:
    """H, the width of the token vectors that a backbone gives.

    Raises:
        ModelError: it has an encoder and a decoder, takes no attention mask, or does not give a vector a token.
    """
    kind, config = type(backbone).__name__, backbone.config
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{kind} has an encoder and a decoder, and would need a text for each: choose a model with one of them."
        )
    if "attention_mask" not in inspect.signature(backbone.forward).parameters:
        raise ModelError(f"{kind} takes no attention mask, so that padding would change its results: choose another.")
    device = next(backbone.parameters()).device
    words = vocabulary_size(backbone)
    ids, mask = torch.tensor(_IDS, device=device).remainder(words), torch.tensor(_MASK, device=device)
    training = backbone.training
    try:
        found = backbone.train(False)(input_ids=ids, attention_mask=mask).last_hidden_state
    except Exception as error:  # each model has reasons of its own
        raise ModelError(
            f"{kind} cannot be called with token ids and an attention mask alone, for sentences of 7 and 4 tokens: {first_line(error)}"
        ) from error
    finally:
        backbone.train(training)
    if found.ndim != 3 or found.shape[:2] != ids.shape:
        raise ModelError(
            f"{kind} gives hidden states of shape {tuple(found.shape)}; expected a vector for each of {tuple(ids.shape)}."
        )
    return int(found.shape[2])
