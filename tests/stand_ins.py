"""Small stand-ins for what a person brings: model folders of both architectures with tokenizers of
their kinds, and files of pairs and articles as Dolly and Wikipedia come."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXTS = ["### Instruction:\nName the river of a valley.\n\n### Response:\nThe river is the Orle."]


def gpt2_tokenizer(texts: Sequence[str] = TEXTS, vocabulary: int = 300) -> Any:
    """As GPT-2's: of bytes, `<|endoftext|>` for all purposes, no padding, no BOS of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        clean_up_tokenization_spaces=False,
    )


def llama_tokenizer(texts: Sequence[str] = TEXTS, vocabulary: int = 360) -> Any:
    """As Llama's: pieces with a leading blank, bytes for what has none, and a BOS that it adds."""
    byte_pieces = [f"<0x{one:02X}>" for one in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>"]
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special, *byte_pieces],
        show_progress=False,
        max_token_length=6,
    )
    tokenizer.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
    # The trainer makes the bytes special, which would keep them out of ordinary text.
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [one for one in written["added_tokens"] if one["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(written))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def gpt2_folder(folder: Path, texts: Sequence[str] = TEXTS, positions: int = 256) -> Path:
    """A random GPT-2 of some ten thousand weights: a tied head, dropout, no padding."""
    tokenizer = gpt2_tokenizer(texts)
    torch.manual_seed(0)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=positions, vocab_size=len(tokenizer),
        bos_token_id=eos, eos_token_id=eos, initializer_range=0.1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf(
    source: Path,
    file: Path,
    stored: str = "F32",
    architecture: str = "llama",
    add: Callable[[Any], object] = lambda writer: None,
) -> Path:
    """A `llama_folder` as llama.cpp would keep it, its matrices in the type `stored`."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config = LlamaConfig.from_pretrained(source)
    writer = GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)

    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(pieces))
    writer.add_token_scores([-float(rank) for rank in range(len(pieces))])
    # 1 is ordinary, 3 control, 6 a byte.
    kinds = [3 if one in special else 6 if one.startswith("<0x") else 1 for one in pieces]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    for name, id_ in (("unk", 0), ("bos", config.bos_token_id), ("eos", config.eos_token_id)):
        getattr(writer, f"add_{name}_token_id")(id_)
    writer.add_add_bos_token(True)

    for name, weight in load_file(source / "model.safetensors").items():
        module, values = name.removesuffix(".weight"), weight.numpy()
        block = ""
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            block = f"blk.{layer}."
        heads = {
            "self_attn.q_proj": config.num_attention_heads,
            "self_attn.k_proj": config.num_key_value_heads,
        }.get(module)
        if heads:  # llama.cpp turns neighbours into one another, transformers halves of a head
            halves = values.reshape(heads, 2, -1, values.shape[1])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        kind = GGMLQuantizationType[stored if values.ndim == 2 else "F32"]
        name = f"{block}{GGUF_NAMES[module]}.weight"
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_folder(folder: Path, stored: str = "Q8_0") -> Path:
    """A folder that holds nothing but a `llama_folder`'s model as a .gguf file."""
    folder.mkdir(parents=True)
    write_gguf(llama_folder(folder.with_name("source")), folder / "model.gguf", stored)
    return folder


def llama_folder(
    folder: Path, texts: Sequence[str] = TEXTS, positions: int = 256, tied: bool = False
) -> Path:
    """A random Llama of some ten thousand weights: an untied head unless asked, no padding."""
    tokenizer = llama_tokenizer(texts)
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=len(tokenizer), max_position_embeddings=positions,
        tie_word_embeddings=tied, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=None, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PLACES = ("Orle", "Tamsin", "Brede", "Calder", "Ferrow", "Halm", "Isk", "Morwen", "Nant", "Perrin")
THINGS = ("a mill", "two bridges", "an old church", "a fair", "many sheep", "a ferry", "a market")


def write_dolly(folder: Path, rows: int) -> Path:
    """Pairs with the columns and categories of Dolly, a third of them with a context."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    lines = []
    for number in range(rows):
        place, thing, other = random.choice(PLACES), *random.sample(THINGS, 2)
        text = f"{place} number {number} has {thing} and {other}."
        lines.append(
            {
                "instruction": f"What is there to see in {place} number {number}?",
                "context": text if number % 3 == 0 else "",
                "response": f"{thing} and {other}. " * random.randint(1, 3) + f"It is {place}.",
                "category": "closed_qa" if number % 3 == 0 else "open_qa",
            }
        )
    return _write(folder / "databricks-dolly-15k.jsonl", lines)


def write_articles(folder: Path, rows: int) -> Path:
    """Articles with the columns of Wikipedia, some hundred words each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(1)
    lines = []
    for number in range(rows):
        place = random.choice(PLACES)
        sentences = [f"In {place} {year} there was {random.choice(THINGS)}." for year in range(40)]
        random.shuffle(sentences)
        title = f"{place} {number}"
        lines.append({"id": str(number), "title": title, "text": f"{title}. {' '.join(sentences)}"})
    return _write(folder / "articles.jsonl", lines)


def _write(path: Path, lines: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
