"""Random models small enough for a test, of both architectures."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 64
EOS = 0


def tiny_model(architecture: str, seed: int = 0, dropout: float = 0.1) -> Any:
    """A fp32 model of some ten thousand random weights; GPT-2 comes with dropout, as it does."""
    torch.manual_seed(seed)
    if architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=VOCABULARY,
                resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
                bos_token_id=EOS, eos_token_id=EOS, initializer_range=0.3,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            vocab_size=VOCABULARY, max_position_embeddings=64, attention_dropout=dropout,
            tie_word_embeddings=architecture == "llama-tied", bos_token_id=EOS, eos_token_id=EOS,
            pad_token_id=None, initializer_range=0.3,
        )
    )


ARCHITECTURES = ["gpt2", "llama", "llama-tied"]
