"""Weights against their configuration: every misfit is named before and at the load, and what
transformers reads rightly is no fault."""

from __future__ import annotations

import contextlib
import json
import shlex
import struct
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import gpt2_folder, llama_folder
from test_model_folders import change, lose_a_shard, stories
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from cpo.models.folders import ModelFolderError, faults, load_model

Weights = dict[str, Tensor]


def llama_tied(folder: Path) -> Path:
    return llama_folder(folder, tied=True)


KINDS = {"gpt2": gpt2_folder, "llama": llama_folder, "tied": llama_tied, "stories": stories}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> Path:
    return KINDS[request.param](tmp_path / "model")


def rewrite(edit: Callable[[Weights], Mapping[str, Tensor]]) -> Callable[[Path], None]:
    def edit_file(folder: Path) -> None:
        weights = edit(load_file(folder / "model.safetensors"))
        kept = {name: weight.contiguous() for name, weight in weights.items()}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return edit_file


def rename(new_name: Callable[[str], str]) -> Callable[[Path], None]:
    return rewrite(lambda weights: {new_name(name): one for name, one in weights.items()})


def convert(dtype: torch.dtype) -> Callable[[Path], None]:
    """All matrices as another dtype."""
    return rewrite(
        lambda weights: {
            name: one.to(dtype) if one.ndim == 2 else one for name, one in weights.items()
        }
    )


def refused(folder: Path, what: str, remedy: str) -> str:
    """Checks that doctor and the load say so, in the same words; returns the remedy."""
    fault, *others = faults(folder, longest=100)
    assert what in fault.what and remedy in fault.remedy
    assert not others or not (folder / "tokenizer.json").exists()
    with pytest.raises(ModelFolderError) as said:
        load_model(folder)
    assert str(said.value) == f"{folder}: {fault.what}. {fault.remedy}."
    return fault.remedy


# --- Names ----------------------------------------------------------------------------------------

PREFIXES = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "module._orig_mod.": "DistributedDataParallel",
    "base_model.model.": "peft",
    "lightning.net.": "a wrapper",
}


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [*product(["tied"], PREFIXES), *product(["gpt2", "stories"], ["_orig_mod.", "module."])],
)
def test_a_wrapper_s_prefix_is_named_and_the_remedy_takes_it_out(
    kind, prefix, tmp_path, monkeypatch
):
    folder = KINDS[kind](tmp_path / "model")
    before = load_model(folder).state_dict()
    rename(lambda name: prefix + name)(folder)
    remedy = refused(folder, f"unknown ({prefix}", f"is left from {PREFIXES[prefix]}.")
    follow(remedy, tmp_path, monkeypatch)
    after = load_model(tmp_path / "FOLDER").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_wrapper_inside_the_names_is_taken_out_everywhere(tmp_path, monkeypatch):
    """FSDP puts its module around each layer, and compiling a part of a model around that part."""
    folder = llama_folder(tmp_path / "model")
    rename(lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."))(folder)
    rename(lambda name: "_fsdp_wrapped_module." + name.replace("mlp", "mlp._orig_mod"))(folder)
    remedy = refused(folder, "unknown", "is left from FullyShardedDataParallel")
    follow(remedy, tmp_path, monkeypatch)
    assert faults(tmp_path / "FOLDER") == []


def follow(remedy: str, folder: Path, monkeypatch) -> None:
    """Runs the `python -c "..."` of a remedy in a folder."""
    words = shlex.split(remedy[remedy.index("python -c") :])
    monkeypatch.chdir(folder)
    exec(words[2].removesuffix(","), {})


# --- Other misfits --------------------------------------------------------------------------------

HIDDEN = {"gpt2": "n_embd", "llama": "hidden_size"}


def kind_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def lose_a_layer(folder: Path) -> None:
    rewrite(lambda weights: {n: one for n, one in weights.items() if ".1." not in n})(folder)


def lengthen_the_vocabulary(folder: Path) -> None:
    """Eight rows more in the embedding, and in the head where it is stored."""
    ends = ("wte.weight", "embed_tokens.weight", "lm_head.weight")
    rewrite(
        lambda weights: {
            name: torch.cat([one, one[:8]]) if name.endswith(ends) else one
            for name, one in weights.items()
        }
    )(folder)


def test_a_missing_layer_is_named(folder):
    layer = [name for name in load_file(folder / "model.safetensors") if ".1." in name]
    lose_a_layer(folder)
    refused(folder, f"{len(layer)} missing ({min(layer)}, ", "some of its weights are missing")


def test_a_list_of_shards_that_ends_early_is_a_missing_part(folder):
    """The index is whole but lists the first of two files alone."""
    lose_a_shard(folder)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"] = {
        name: file for name, file in listed["weight_map"].items() if "-00001-" in file
    }
    index.write_text(json.dumps(listed))
    refused(folder, "missing (", "some of its weights are missing")


def test_a_vocabulary_of_another_length_is_named_with_both_shapes(folder):
    config = json.loads((folder / "config.json").read_text())
    rows, width = config["vocab_size"], config[HIDDEN[kind_of(folder)]]
    lengthen_the_vocabulary(folder)
    refused(
        folder, f"is [{rows + 8}, {width}], not [{rows}, {width}]", f"Set vocab_size to {rows + 8}"
    )


def test_another_width_is_named(folder):
    width = HIDDEN[kind_of(folder)]
    change("config.json", **{width: 96})(folder)
    refused(folder, "of another shape (", "written together")


def test_a_type_of_another_architecture_is_named(folder):
    change("config.json", model_type="bert", architectures=None)(folder)
    refused(folder, "not those of the BertLMHeadModel in its config.json", "written together")


def test_an_architecture_without_a_language_model_s_head_is_named(folder):
    change("config.json", architectures=["LlamaForSequenceClassification"])(folder)
    [fault] = faults(folder)
    assert "calls it a LlamaForSequenceClassification" in fault.what


def test_a_weight_too_many_is_named(tmp_path):
    folder = llama_folder(tmp_path / "model")
    rewrite(lambda weights: weights | {"v_head.summary.weight": torch.ones(1, 32)})(folder)
    refused(folder, "1 unknown (v_head.summary.weight)", "such as a value head")
    change("config.json", num_hidden_layers=1)(folder)
    refused(folder, "unknown (model.layers.1.", "written together")


def test_a_head_that_is_neither_stored_nor_tied_is_named(tmp_path):
    folder = llama_folder(tmp_path / "model")
    rewrite(lambda weights: {n: w for n, w in weights.items() if n != "lm_head.weight"})(folder)
    refused(folder, "1 missing (lm_head.weight)", "set tie_word_embeddings to true")
    change("config.json", tie_word_embeddings=True)(folder)
    model = load_model(folder)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_an_expert_that_is_missing_is_named(tmp_path):
    """Experts are joined at the load: a part of one leaves nothing to join, or too little."""
    folder = mixtral(tmp_path / "model")
    experts = "model.layers.0.block_sparse_moe.experts.3."
    whole = load_file(folder / "model.safetensors")
    rewrite(lambda weights: {n: w for n, w in whole.items() if not n.startswith(experts)})(folder)
    refused(folder, "model.layers.0.mlp.experts.down_proj is [3, ", "written together")
    rewrite(lambda weights: {n: w for n, w in whole.items() if n != f"{experts}w1.weight"})(folder)
    with pytest.raises(
        ModelFolderError, match="1 weights cannot be merged, model.layers.0.mlp.experts"
    ):
        load_model(folder)


@pytest.mark.parametrize("inside", [False, True])
def test_an_adapter_is_no_whole_model(inside, tmp_path):
    folder = llama_folder(tmp_path / "model")
    if inside:  # saved with the adapter's matrices among the model's
        lora = {"base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight": 4}
        rewrite(lambda weights: weights | {n: torch.ones(k, 64) for n, k in lora.items()})(folder)
        refused(folder, "1 unknown (base_model.model", "with an adapter: merge it")
        return
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    refused(folder, "a PEFT adapter beside a model", "merge_and_unload()")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "a PEFT adapter and not a whole model", "merge_and_unload()")


def test_an_encoder_is_no_causal_model(tmp_path):
    """BERT sees both sides of a token unless its configuration says otherwise."""
    folder = toy(tmp_path / "model", "bert")
    message = "sees the tokens that it should predict.*set is_decoder to true"
    with pytest.raises(ModelFolderError, match=message):
        load_model(folder)
    change("config.json", is_decoder=True)(folder)
    logits = load_model(folder)(torch.tensor([[1, 2, 3], [1, 2, 4]])).logits
    assert torch.allclose(logits[0, :2], logits[1, :2])  # the third token is not seen


# --- Quantised ------------------------------------------------------------------------------------

QUANTISED = {
    "bitsandbytes": (
        change("config.json", quantization_config={"load_in_4bit": True}),
        "(bitsandbytes, 4 bits)",
    ),
    "gptq": (
        change("config.json", quantization_config={"quant_method": "gptq", "bits": 3}),
        "(gptq, 3 bits)",
    ),
    "fp8": (change("config.json", quantization_config={"quant_method": "fp8"}), "(fp8)"),
    "inner": (
        change("config.json", text_config={"quantization_config": {"quant_method": "awq"}}),
        "(awq)",
    ),
    "int8 alone": (convert(torch.int8), "(int8: "),
    "float8 alone": (convert(torch.float8_e4m3fn), "(float8_e4m3fn: "),
    "packed": (
        rewrite(
            lambda weights: {
                name.replace("_proj.weight", "_proj.qweight"): one.int() if "_proj" in name else one
                for name, one in weights.items()
            }
        ),
        "(int32: model.layers.0.mlp.down_proj.qweight, ",
    ),
}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_refused(name, tmp_path):
    spoil, how = QUANTISED[name]
    folder = llama_folder(tmp_path / "model")
    spoil(folder)
    refused(folder, f"its weights are quantised {how}", "Give the original model")


def test_a_judge_may_be_quantised(tmp_path):
    folder = llama_folder(tmp_path / "model")
    change("config.json", quantization_config={"quant_method": "awq", "bits": 4})(folder)
    assert faults(folder, may_be_quantised=True) == []


# --- What is no fault -----------------------------------------------------------------------------


def toy(folder: Path, kind: str, **settings: object) -> Path:
    """A small random model of any type that is known by the usual names of sizes."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
        "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16, "ffn_dim": 64,
        "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    known = vars(AutoConfig.for_model(kind))
    fitting = {name: size for name, size in sizes.items() if name in known}
    config = AutoConfig.for_model(kind, **fitting | settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def mixtral(folder: Path) -> Path:
    return toy(folder, "mixtral")


@pytest.mark.parametrize(
    "kind",
    ["gemma2", "gpt_neox", "opt", "qwen2", "qwen3_moe", "mixtral", "phi3", "bloom", "gpt_oss",
     "falcon_h1", "mamba"],
)  # fmt: skip
def test_every_architecture_as_it_is_saved_is_sound(kind, tmp_path):
    """Renamed, joined and tied weights among them; and each is missed where it is taken away."""
    folder = toy(tmp_path / "model", kind)
    load_model(folder)
    name = min(name for name, one in load_file(folder / "model.safetensors").items() if one.dim())
    rewrite(lambda weights: {n: w for n, w in weights.items() if n != name})(folder)
    with pytest.raises(ModelFolderError):
        load_model(folder)


def as_on_the_hub(folder: Path) -> None:
    """GPT-2 as it was published: no prefix, and the causal mask among the weights."""
    rename(lambda name: name.removeprefix("transformer."))(folder)
    masks = {
        "h.0.attn.bias": torch.ones(1, 1, 256, 256, dtype=torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    rewrite(lambda weights: weights | masks)(folder)


def with_frequencies(folder: Path) -> None:
    """Llama as older versions saved it."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(lambda weights: weights | {name: torch.ones(4)})(folder)


def in_one_more_module(folder: Path) -> None:
    rename(lambda name: f"model.{name}")(folder)  # which transformers takes out itself


def with_the_tied_head(folder: Path) -> None:
    name = "model.embed_tokens.weight"
    rewrite(lambda weights: weights | {"lm_head.weight": weights[name].clone()})(folder)


SOUND = {
    "gpt2 as on the hub": (gpt2_folder, as_on_the_hub),
    "llama of old": (llama_folder, with_frequencies),
    "model.model.": (llama_folder, in_one_more_module),
    "tied, and stored": (llama_tied, with_the_tied_head),
    "fp16": (llama_folder, convert(torch.float16)),
    "bf16": (gpt2_folder, convert(torch.bfloat16)),
    "fp64": (gpt2_folder, convert(torch.float64)),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_transformers_reads_rightly_is_no_fault(name, tmp_path):
    make, edit = SOUND[name]
    folder = make(tmp_path / "model")
    before = load_model(folder).state_dict()
    edit(folder)
    assert faults(folder, longest=100) == []
    after = load_model(folder).state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == torch.float32
        assert torch.allclose(weight, after[name], rtol=2**-8, atol=1e-6)  # bf16 keeps 8 bits


def test_what_transformers_warns_of_at_a_load_is_passed_on(tmp_path):
    """A head that is said to be tied and is stored with other values stays as it is stored."""
    folder = llama_tied(tmp_path / "model")
    name = "model.embed_tokens.weight"
    rewrite(lambda weights: weights | {"lm_head.weight": 2 * weights[name]})(folder)
    with pytest.warns(UserWarning, match="both are present in the checkpoints with different"):
        model = load_model(folder)
    assert torch.equal(model.lm_head.weight, 2 * model.model.embed_tokens.weight)


def test_a_huge_model_is_checked_by_its_header_alone(tmp_path):
    """141 GB of weights, in a file with holes: to read them would fill the memory."""
    folder = llama_folder(tmp_path / "model")
    change(
        "config.json", hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, intermediate_size=28672, vocab_size=128256, head_dim=128,
    )(folder)  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    header, end = {}, 0
    for name, weight in model.state_dict().items():
        start, end = end, end + 2 * weight.numel()
        header[name] = {"dtype": "BF16", "shape": [*weight.shape], "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        with contextlib.suppress(OSError):  # a disk that knows no holes
            file.truncate(8 + len(written) + end)
        if file.seek(0, 2) < end:
            pytest.skip("no sparse files here")
    assert end > 140e9 and faults(folder, longest=100) == []
    change("config.json", num_hidden_layers=81)(folder)
    [fault] = faults(folder, longest=100)
    assert "9 missing (model.layers.80." in fault.what
