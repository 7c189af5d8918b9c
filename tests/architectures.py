"""Toy models of many architectures of transformers, with weights of large spread."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 64

_LLAMA_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128,
    "initializer_range": 0.3, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
_GPT_LIKE = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
_BERT_LIKE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "initializer_range": 0.3,
}  # fmt: skip
_MAMBA = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}  # fmt: skip

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT_LIKE,
    "openai-gpt": _GPT_LIKE,
    "gptj": _GPT_LIKE | {"rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "attention_types": [[["global", "local"], 1]], "window_size": 8, "initializer_range": 0.3,
        "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 1,
    },
    "gpt_neox": _LLAMA_LIKE,
    "bloom": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1,
    },
    "opt": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 128,
        "init_std": 0.3, "dropout": 0.1, "attention_dropout": 0.1, "bos_token_id": 1,
        "eos_token_id": 1,
    },
    "llama": _LLAMA_LIKE,
    "llama4_text": _LLAMA_LIKE
    | {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "mistral": _LLAMA_LIKE | {"sliding_window": 16},
    "starcoder2": _LLAMA_LIKE
    | {"residual_dropout": 0.1, "embedding_dropout": 0.1, "attention_dropout": 0.1},
    "qwen3": _LLAMA_LIKE | {"head_dim": 8},
    "phi": _LLAMA_LIKE,  # its head has a bias
    "granite": _LLAMA_LIKE | {"logits_scaling": 8.0},
    "hyperclovax": _LLAMA_LIKE | {"logits_scaling": 8.0},  # the same name, but a factor
    "cohere": _LLAMA_LIKE | {"logit_scale": 0.0625},
    "gemma2": _LLAMA_LIKE | {"head_dim": 8, "final_logit_softcapping": 3.0},
    "nanochat": _LLAMA_LIKE,
    "falcon_h1": _LLAMA_LIKE | _MAMBA | {"lm_head_multiplier": 0.04},
    "mamba": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4,
        "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1,
    },
}  # fmt: skip


def toy_model(architecture: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """In evaluation mode, as it is loaded."""
    torch.manual_seed(0)
    defaults = CONFIGURATIONS.get(architecture, _BERT_LIKE)
    config = AutoConfig.for_model(architecture, **defaults | changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype).eval()
