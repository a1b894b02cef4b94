"""Tiny random models of many families of Transformers, with every window, chunk and limit small enough to be passed."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as T
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from lora_a2.model.catalog import has_optional_pooling

VOCABULARY = 60
LENGTH = 64
"""Tokens that every family has positions for."""

_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    **_IDS,
}
_ENCODER: dict[str, Any] = {"max_position_embeddings": 72, **_SIZES}
_DECODER: dict[str, Any] = {"max_position_embeddings": 72, **_SIZES}
_GQA: dict[str, Any] = {"num_key_value_heads": 1, **_DECODER}
_OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 72, **_IDS}

FAMILIES: dict[str, PretrainedConfig] = {
    "albert": T.AlbertConfig(embedding_size=16, **_ENCODER),
    "bert": T.BertConfig(**_ENCODER),
    "big_bird": T.BigBirdConfig(attention_type="original_full", **_ENCODER),
    "camembert": T.CamembertConfig(**_ENCODER),
    "convbert": T.ConvBertConfig(embedding_size=32, **_ENCODER),
    "data2vec-text": T.Data2VecTextConfig(**_ENCODER),
    "deberta": T.DebertaConfig(relative_attention=True, pos_att_type=["c2p", "p2c"], **_ENCODER),
    "deberta-v2": T.DebertaV2Config(
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, type_vocab_size=0, **_ENCODER
    ),
    "distilbert": T.DistilBertConfig(dim=32, n_layers=3, n_heads=2, hidden_dim=48, max_position_embeddings=72, **_IDS),
    "electra": T.ElectraConfig(embedding_size=16, **_ENCODER),
    "ernie": T.ErnieConfig(**_ENCODER),
    "esm": T.EsmConfig(position_embedding_type="rotary", mask_token_id=4, **_ENCODER),
    "longformer": T.LongformerConfig(attention_window=8, **(_ENCODER | {"max_position_embeddings": 90})),
    "modernbert": T.ModernBertConfig(
        local_attention=16, global_attn_every_n_layers=3, cls_token_id=1, sep_token_id=2, **_ENCODER
    ),
    "mpnet": T.MPNetConfig(**_ENCODER),
    "nystromformer": T.NystromformerConfig(num_landmarks=8, segment_means_seq_len=64, **_ENCODER),
    "rembert": T.RemBertConfig(input_embedding_size=16, output_embedding_size=16, **_ENCODER),
    "roberta": T.RobertaConfig(**_ENCODER),
    "roformer": T.RoFormerConfig(embedding_size=32, **_ENCODER),
    "squeezebert": T.SqueezeBertConfig(embedding_size=32, **_ENCODER),
    "xlm-roberta": T.XLMRobertaConfig(**(_ENCODER | {"pad_token_id": 1, "bos_token_id": 0})),
    "xlnet": T.XLNetConfig(d_model=32, n_layer=3, n_head=2, d_inner=48, **_IDS),
    "bloom": T.BloomConfig(hidden_size=32, n_layer=3, n_head=2, **_IDS),
    "cohere": T.CohereConfig(**_GQA),
    "falcon": T.FalconConfig(ffn_hidden_size=48, **_DECODER),
    "gemma": T.GemmaConfig(head_dim=16, **_GQA),
    "gemma2": T.Gemma2Config(head_dim=16, sliding_window=16, **_GQA),
    "gemma3_text": T.Gemma3TextConfig(head_dim=16, sliding_window=16, **_GQA),
    "gpt2": T.GPT2Config(**_OLD),
    "gpt_neo": T.GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=16,
        max_position_embeddings=72,
        **_IDS,
    ),
    "gpt_neox": T.GPTNeoXConfig(**_DECODER),
    "gpt_oss": T.GptOssConfig(head_dim=16, sliding_window=16, num_local_experts=4, num_experts_per_tok=2, **_GQA),
    "gptj": T.GPTJConfig(rotary_dim=8, **_OLD),
    "granite": T.GraniteConfig(**_GQA),
    "llama": T.LlamaConfig(**_GQA),
    "mistral": T.MistralConfig(sliding_window=16, **_GQA),
    "mixtral": T.MixtralConfig(sliding_window=16, num_local_experts=4, **_GQA),
    "mpt": T.MptConfig(d_model=32, n_layers=3, n_heads=2, max_seq_len=72, **_IDS),
    "olmo": T.OlmoConfig(**_GQA),
    "olmo2": T.Olmo2Config(**_GQA),
    "opt": T.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **_DECODER),
    "phi": T.PhiConfig(**_DECODER),
    "phi3": T.Phi3Config(sliding_window=16, **_GQA),
    "qwen2": T.Qwen2Config(use_sliding_window=True, sliding_window=16, max_window_layers=1, **_GQA),
    "qwen3": T.Qwen3Config(head_dim=16, use_sliding_window=True, sliding_window=16, max_window_layers=1, **_GQA),
    "smollm3": T.SmolLM3Config(**_GQA),
    "stablelm": T.StableLmConfig(num_key_value_heads=2, **_DECODER),
    "starcoder2": T.Starcoder2Config(sliding_window=16, **_GQA),
    "bart": T.BartConfig(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, **_IDS),
    "canine": T.CanineConfig(**_ENCODER),
    "rwkv": T.RwkvConfig(num_hidden_layers=2, hidden_size=32, attention_hidden_size=32, **_IDS),
    "cohere2": T.Cohere2Config(sliding_window=16, **_GQA),
    "olmo3": T.Olmo3Config(sliding_window=16, **_GQA),
    "exaone4": T.Exaone4Config(sliding_window=16, **_GQA),
    "qwen3_moe": T.Qwen3MoeConfig(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **_GQA),
    "deepseek_v3": T.DeepseekV3Config(
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_group=1,
        topk_group=1,
        **_DECODER,
    ),
    "mamba": T.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **_IDS),
    "reformer": T.ReformerConfig(
        hidden_size=32,
        axial_pos_embds=False,
        attention_head_size=16,
        num_attention_heads=2,
        attn_layers=["local", "lsh"],
        **_IDS,
    ),
    "t5": T.T5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, **_IDS),
}


def make(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random backbone as `load_backbone` gives it, its weights spread so that differences show."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModel.from_config(copy.deepcopy(FAMILIES[family]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if has_optional_pooling(model.config):
        model.pooler = None
    return model.to(dtype).eval()
