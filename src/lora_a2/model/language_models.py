"""Shapes of the commonest causal language models, so that `lora-a2 cost` needs neither network nor weights.

They are from the `config.json` that their authors published. What has no part in a shape (rotary scaling beyond the
training length, dropout) is left to the model's own file, which is what is read where weights are.
"""

from __future__ import annotations

from typing import Any


def _row(
    kind: str, vocabulary: int, width: int, inner: int, layers: int, heads: tuple[int, int], positions: int, **more: Any
) -> dict[str, Any]:
    """What most decoders call it; `heads` are those of queries, and of keys and values."""
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": positions,
        "tie_word_embeddings": False,
    } | more


def _llama3(factor: float, **more: Any) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ends = {"bos_token_id": 128000, "eos_token_id": 128001}
    return {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": scaling, **ends, **more}


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_QWEN2: dict[str, Any] = {
    "rope_theta": 1e6,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_QWEN3: dict[str, Any] = _QWEN2 | {"head_dim": 128, "eos_token_id": 151645}
_SMOLLM2: dict[str, Any] = _TIED | {"rms_norm_eps": 1e-5, "rope_theta": 1e5, "bos_token_id": 0, "eos_token_id": 0}
_GEMMA: dict[str, Any] = _TIED | {"head_dim": 256, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": _row("llama", 128256, 2048, 8192, 16, (32, 8), 131072, **_llama3(32.0, head_dim=64, **_TIED)),
    "Llama-3.2-3B": _row("llama", 128256, 3072, 8192, 28, (24, 8), 131072, **_llama3(32.0, head_dim=128, **_TIED)),
    "Llama-3.1-8B": _row("llama", 128256, 4096, 14336, 32, (32, 8), 131072, **_llama3(8.0)),
    "Mistral-7B-v0.3": _row(
        "mistral", 32768, 4096, 14336, 32, (32, 8), 32768, rms_norm_eps=1e-5, rope_theta=1e6, sliding_window=None
    ),
    "Qwen2.5-0.5B": _row("qwen2", 151936, 896, 4864, 24, (14, 2), 32768, **_QWEN2 | _TIED),
    "Qwen2.5-1.5B": _row("qwen2", 151936, 1536, 8960, 28, (12, 2), 131072, **_QWEN2 | _TIED),
    "Qwen2.5-7B": _row("qwen2", 152064, 3584, 18944, 28, (28, 4), 131072, **_QWEN2),
    "Qwen3-0.6B": _row("qwen3", 151936, 1024, 3072, 28, (16, 8), 40960, **_QWEN3 | _TIED),
    "Qwen3-1.7B": _row("qwen3", 151936, 2048, 6144, 28, (16, 8), 40960, **_QWEN3 | _TIED),
    "Qwen3-8B": _row("qwen3", 151936, 4096, 12288, 36, (32, 8), 40960, **_QWEN3),
    "SmolLM2-135M": _row("llama", 49152, 576, 1536, 30, (9, 3), 8192, **_SMOLLM2),
    "SmolLM2-135M-Instruct": _row(
        "llama", 49152, 576, 1536, 30, (9, 3), 8192, **_SMOLLM2 | {"bos_token_id": 1, "eos_token_id": 2}, pad_token_id=2
    ),
    "SmolLM2-360M": _row("llama", 49152, 960, 2560, 32, (15, 5), 8192, **_SMOLLM2),
    "SmolLM2-1.7B": _row("llama", 49152, 2048, 8192, 24, (32, 32), 8192, **_SMOLLM2 | {"rope_theta": 130000.0}),
    "gemma-2-2b": _row("gemma2", 256000, 2304, 9216, 26, (8, 4), 8192, **_GEMMA, sliding_window=4096),
    "gemma-3-1b-pt": _row("gemma3_text", 262144, 1152, 6912, 26, (4, 1), 32768, **_GEMMA, sliding_window=512),
    "Phi-3.5-mini-instruct": _row(
        "phi3", 32064, 3072, 8192, 32, (32, 32), 131072, rms_norm_eps=1e-5, pad_token_id=32000
    ),
    "phi-2": _row("phi", 51200, 2560, 10240, 32, (32, 32), 2048, partial_rotary_factor=0.4),
    "TinyLlama-1.1B-Chat-v1.0": _row("llama", 32000, 2048, 5632, 22, (32, 4), 2048, rms_norm_eps=1e-5),
    "opt-1.3b": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "pythia-1.4b": {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 2048,
        "rotary_pct": 0.25,
        "tie_word_embeddings": False,
    },
    "bloom-560m": {"model_type": "bloom", "vocab_size": 250880, "hidden_size": 1024, "n_layer": 24, "n_head": 16},
    "falcon-7b": {
        "model_type": "falcon",
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
        "alibi": False,
        "bos_token_id": 11,
        "eos_token_id": 11,
    },
}
"""Name → what differs from the defaults of its Transformers configuration class, with `model_type`."""

HUB_IDS: dict[str, str] = {
    "Llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "Llama-3.2-3B": "meta-llama/Llama-3.2-3B",
    "Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "Mistral-7B-v0.3": "mistralai/Mistral-7B-v0.3",
    "Qwen2.5-0.5B": "Qwen/Qwen2.5-0.5B",
    "Qwen2.5-1.5B": "Qwen/Qwen2.5-1.5B",
    "Qwen2.5-7B": "Qwen/Qwen2.5-7B",
    "Qwen3-0.6B": "Qwen/Qwen3-0.6B",
    "Qwen3-1.7B": "Qwen/Qwen3-1.7B",
    "Qwen3-8B": "Qwen/Qwen3-8B",
    "SmolLM2-135M": "HuggingFaceTB/SmolLM2-135M",
    "SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "SmolLM2-360M": "HuggingFaceTB/SmolLM2-360M",
    "SmolLM2-1.7B": "HuggingFaceTB/SmolLM2-1.7B",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-3-1b-pt": "google/gemma-3-1b-pt",
    "Phi-3.5-mini-instruct": "microsoft/Phi-3.5-mini-instruct",
    "phi-2": "microsoft/phi-2",
    "TinyLlama-1.1B-Chat-v1.0": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "opt-1.3b": "facebook/opt-1.3b",
    "pythia-1.4b": "EleutherAI/pythia-1.4b",
    "bloom-560m": "bigscience/bloom-560m",
    "falcon-7b": "tiiuae/falcon-7b",
}
"""Name → what a hub calls it."""
