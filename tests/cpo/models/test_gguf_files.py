"""Models in a .gguf file: read to the number, unpacked once, and refused where a part would be
left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.torch import load_file, save_file
from stand_ins import gguf_folder, llama_folder, write_gguf
from test_model_folders import change, suite_of  # noqa: F401 - a fixture

from cpo.models import gguf as gguf_files
from cpo.models.folders import ModelFolderError, faults, fetched, load_model, load_tokenizer
from cpo_suite.run import doctor

IDS = torch.tensor([[1, 300, 7, 42, 300, 9, 11, 320]])


@pytest.fixture
def source(tmp_path) -> Path:
    return llama_folder(tmp_path / "source")


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_of_fp32_gives_the_model_that_it_was_made_from(tied, tmp_path):
    source = llama_folder(tmp_path / "source", tied=tied)
    rope = {"rope_type": "default", "rope_theta": 50.0}
    change("config.json", rope_parameters=rope, rms_norm_eps=0.01)(source)
    file = write_gguf(source, tmp_path / "model.gguf")
    expected, model = load_model(source), load_model(file)
    assert torch.allclose(model(IDS).logits, expected(IDS).logits, atol=1e-5)
    assert model.config.tie_word_embeddings == tied
    texts = ["The river is the Orle.", "- a\n- b", "é and λ", "ends in a blank "]
    mine, theirs = load_tokenizer(file), load_tokenizer(source)
    assert mine(texts)["input_ids"] == theirs(texts)["input_ids"]
    assert [mine.decode(mine(text)["input_ids"][1:]) for text in texts] == texts
    assert (mine.bos_token_id, mine.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("stored", ["F16", "Q8_0", "Q4_1"])
def test_a_quantised_file_gives_the_numbers_that_it_holds(stored, source, tmp_path):
    """The same model with its matrices rounded by llama.cpp's own package."""
    kind = GGMLQuantizationType[stored]
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            rounded = quants.dequantize(quants.quantize(weight.numpy(), kind), kind)
            weights[name] = torch.from_numpy(np.ascontiguousarray(rounded, dtype=np.float32))
    exact = load_model(source)(IDS).logits
    file = write_gguf(source, tmp_path / "model.gguf", stored)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    logits = load_model(file, "auto")(IDS).logits
    assert torch.allclose(logits, load_model(source)(IDS).logits, atol=1e-5)
    assert not torch.allclose(logits, exact, atol=1e-5)


def test_a_file_says_in_how_many_bits_it_is_stored(source, tmp_path):
    """Q8_0 keeps 32 numbers in 34 bytes, 8.5 bits each; the vectors stay at 32 bits. Here there
    are 5 of 32 numbers among 2 * 329 * 32 + 2 * (2 * 32**2 + 2 * 32 * 16 + 3 * 32 * 64)."""
    matrices = 2 * 329 * 32 + 2 * (2 * 32**2 + 2 * 32 * 16 + 3 * 32 * 64)
    bits = (8.5 * matrices + 32 * 160) / (matrices + 160)
    file = write_gguf(source, tmp_path / "model.gguf", "Q8_0")
    assert gguf_files.storage(file) == f"Q8_0, {bits:.1f} bits a weight"
    found = doctor._model("model llama", str(file), "models.llama.pretrained", 200, {})
    assert [item.ok for item in found] == [True]
    assert f"Q8_0, {bits:.1f} bits a weight" in found[0].detail


def test_a_suite_unpacks_a_file_once(tmp_path, suite_of, capsys):  # noqa: F811
    folder = gguf_folder(tmp_path / "model", "Q4_1")
    suite = suite_of(folder / "model.gguf")
    base = suite.base_model("llama")
    assert base.path.parent.name == "external_model"
    assert "model.gguf: Q4_1, " in capsys.readouterr().out
    assert torch.equal(base.load()(IDS).logits, load_model(folder)(IDS).logits)
    assert suite.tokenizer("llama").get_vocab() == load_tokenizer(folder).get_vocab()
    assert faults(base.path, longest=200) == []
    assert suite.base_model("llama").path == base.path and not capsys.readouterr().out
    # Another content is another model, whatever it is called.
    write_gguf(tmp_path / "source", folder / "model.gguf", "Q8_0")
    suite.base_artifact.cache_clear()
    assert suite.base_model("llama").path != base.path


# --- Faults ---------------------------------------------------------------------------------------


def scaled(writer: GGUFWriter) -> None:
    writer.add_string("llama.rope.scaling.type", "linear")


def factors(writer: GGUFWriter) -> None:
    """As files of Llama 3.1 have them."""
    writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))


def part(writer: GGUFWriter) -> None:
    writer.add_uint16("split.count", 3)


FAULTS = {
    "scaled positions": (scaled, "rope.scaling.type: linear", "safetensors"),
    "factors of positions": (factors, "(rope_freqs.weight)", "safetensors"),
    "one of several": (part, "is one of 3 parts", "llama-gguf-split --merge"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_be_read_wrongly_is_a_fault(name, source, tmp_path):
    add, what, remedy = FAULTS[name]
    file = write_gguf(source, tmp_path / "model.gguf", add=add)
    [fault] = faults(file)
    assert what in fault.what and remedy in fault.remedy
    with pytest.raises(ModelFolderError) as said:
        load_model(file)
    assert what in str(said.value)


def test_an_architecture_that_is_not_read_is_a_fault(source, tmp_path):
    file = write_gguf(source, tmp_path / "model.gguf", architecture="rwkv6")
    [fault] = faults(file)
    assert "cannot read model.gguf (ValueError: GGUF model with architecture rwkv6" in fault.what
    assert "safetensors" in fault.remedy


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_what_is_no_whole_file_is_a_fault(content, source, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(write_gguf(source, file).read_bytes()[:-5000] if content is None else content)
    [fault] = faults(file)
    assert "is truncated or not a GGUF file" in fault.what and "Fetch it again" in fault.remedy


def test_a_tensor_that_would_be_left_out_stops_the_load(source, tmp_path):
    """Llama's attention has no biases, and transformers drops those of a file without a word."""

    def biased(writer: GGUFWriter) -> None:
        writer.add_tensor("blk.0.attn_q.bias", np.ones(32, dtype=np.float32))

    file = write_gguf(source, tmp_path / "model.gguf", add=biased)
    with pytest.raises(ModelFolderError, match=r"leaves out 1 .*\(blk.0.attn_q.bias\)"):
        load_model(file)


def test_a_tensor_that_is_missing_stops_the_load(source, tmp_path):
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    file = write_gguf(source, tmp_path / "model.gguf")
    with pytest.raises(ModelFolderError, match=r"1 missing \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(file)


def test_without_its_package_a_file_says_how_to_install_it(source, tmp_path, monkeypatch):
    file = write_gguf(source, tmp_path / "model.gguf")
    monkeypatch.setattr(gguf_files, "find_spec", lambda name: None)
    [fault] = faults(file)
    assert fault.remedy == "pip install gguf"


def test_a_file_has_to_be_there_and_to_be_the_only_one(source, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such .gguf file"):
        fetched(str(tmp_path / "none.gguf"))
    none = str(tmp_path / "none.gguf")
    settings = [f"models.{name}.pretrained={none}" for name in ("gpt2", "llama")]
    settings += [f"{part}.path={tmp_path}" for part in ("instructions", "articles")]
    [found] = [item for item in doctor.inputs("paper", settings) if item.what == "model llama"]
    assert not found.ok and "none.gguf does not exist" in found.detail
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(source, folder / name)
    [fault] = [fault for fault in faults(folder) if "gguf" in fault.what]
    assert "a.gguf, b.gguf" in fault.what and "the path of one" in fault.remedy
