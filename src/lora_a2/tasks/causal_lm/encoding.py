"""placeholder of the contract"""

from __future__ import annotations

from typing import Any

from lora_a2.tasks.base import Encoded, EncodingOptions


def encode(tokenizer: Any, samples: Any, options: EncodingOptions) -> Encoded:
    raise NotImplementedError
