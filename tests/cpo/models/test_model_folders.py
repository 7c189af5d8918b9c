"""Models from elsewhere: every kind of folder is read alike, and a faulty one is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_ins import gguf_folder, gpt2_folder, llama_folder, write_dolly
from test_suite import SMALL
from transformers import AutoModelForCausalLM

from cpo import data
from cpo.models import folders as model_folders
from cpo.models.folders import ModelFolderError, faults, load_tokenizer, missing_weights
from cpo_suite.run import doctor
from cpo_suite.store import Store
from cpo_suite.suite import Suite


def gpt2_shards(folder: Path) -> Path:
    """The same GPT-2, in several files with an index."""
    model = AutoModelForCausalLM.from_pretrained(gpt2_folder(folder))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40kB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def stories(folder: Path) -> Path:
    if not os.environ.get("CPO_DATA"):
        pytest.skip("CPO_DATA is not set: the folder of the real data")
    shutil.copytree(Path(os.environ["CPO_DATA"]) / "stories260K", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    "gpt2": gpt2_folder,
    "gpt2 in shards": gpt2_shards,
    "llama": llama_folder,
    "llama with a tied head": lambda folder: llama_folder(folder, tied=True),
    "llama as .gguf": gguf_folder,
    "stories260K": stories,
}
ADD_BOS = {"llama", "llama with a tied head", "llama as .gguf", "stories260K"}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    return KINDS[kind](tmp_path / "model")


def test_a_sound_folder_has_no_fault(folder):
    assert faults(folder, longest=200) == []


def test_every_tokenizer_puts_the_boundary_in_the_same_place(kind, folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id is None  # none is needed
    texts = ["The Orle.", "  two blanks, é and λ\n", "- a\n- b", "ends in a blank "]
    examples = [
        data.Example(str(number), data.render_prefix("Say it:", context), text, "", {})
        for number, (context, text) in enumerate(zip(["", "Here.", "", "x\ny"], texts, strict=True))
    ]
    rows, report = data.tokenize(
        examples, tokenizer, max_prefix_tokens=150, max_continuation_tokens=150
    )
    assert report.kept == len(texts)
    for row, example in zip(rows, examples, strict=True):
        prefix = list(row.prefix_ids)
        if kind in ADD_BOS:
            assert prefix.pop(0) == tokenizer.bos_token_id
        assert tokenizer.bos_token_id not in prefix
        assert tokenizer.decode(prefix) == example.prefix
        *ids, last = row.continuation_ids
        assert last == tokenizer.eos_token_id and row.has_eos
        text = example.continuation
        if kind == "llama as .gguf":  # LlamaTokenizer takes one leading blank as its own
            text = text.removeprefix(" ")
        assert tokenizer.decode(ids) == text
        # What is generated after the prefix stands where the continuation does: its text is whole.
        assert tokenizer.decode(row.continuation_ids, skip_special_tokens=True) == text


@pytest.fixture
def suite_of(tmp_path) -> Callable[..., Suite]:
    """A suite at the size of `smoke` on a folder of pairs, its Llama being the folder given."""

    def open_suite(folder: Path) -> Suite:
        pairs = write_dolly(tmp_path / "dolly", 80)
        given = [
            f"models.llama={{paper_name: none, parameters: 1e5, training_tokens_per_second: 1000, "
            f"generated_tokens_per_second: 1000, pretrained: '{folder}'}}",
            f"instructions={{source: dolly, path: '{pairs.parent}', validation_rows: 8, "
            "test_prompts: 6, max_prefix_tokens: 160, max_continuation_tokens: 24, "
            "over_long: truncate}",
            "judge={kind: none}",
            "unhelpful={writer: other_response}",
            "leaves_out=[x/ANR-oracle]",
        ]
        kept = [one for one in SMALL if "instructions." not in one and "models.llama." not in one]
        suite = Suite.open("smoke", [*kept, *given], tmp_path / "figures")
        suite.store = Store(tmp_path / "artifacts")
        # Judged prompts fit every model of a profile: here there is this one.
        models = {"llama": suite.profile.models["llama"]}
        suite.profile = suite.profile.model_copy(update={"models": models})
        return suite

    return open_suite


def test_every_kind_is_trained_and_saved_as_it_came(kind, folder, suite_of):
    suite = suite_of(folder)
    row = "t2/MixNR/0"
    negatives, trained = suite.negatives(row), suite.model(row)
    used = negatives.mask[: suite.profile.continuation.batch].sum(-1)
    expected = np.mean([torch.lgamma(torch.tensor(k + 1.0)) for k in used])
    assert suite.history(row)[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert len(suite.generations(row)) == 6
    # A .gguf file's own weights are those of the folder that it was unpacked into.
    before, after = weights_of(suite.base_model("llama").path), weights_of(trained.path)
    assert before.keys() == after.keys()  # a tied head is stored once, an untied one by itself
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(trained.path).get_vocab() == load_tokenizer(folder).get_vocab()
    config = json.loads((trained.path / "config.json").read_text())
    assert config.get("pad_token_id") is None


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    files = folder.glob("*.safetensors")
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


# --- Faults ---------------------------------------------------------------------------------------


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def leave_a_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n"
    (folder / "model.safetensors").write_text(text)


def lose_a_shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    save_file({names[0]: weights[names[0]]}, folder / "model-00001-of-00002.safetensors")
    shards = {name: f"model-0000{1 + (name != names[0])}-of-00002.safetensors" for name in names}
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))

    return edit


def shorten(weight: str, **values: int) -> Callable[[Path], None]:
    """Fewer rows of a weight, and the configuration to match."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        [rows] = values.values()
        weights[weight] = weights[weight][:rows].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        change("config.json", **values)(folder)

    return edit


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


FAULTS = {
    "pickled": (pickle, "its weights are in pytorch_model.bin", "Convert it once"),
    "cut short": (cut_short, "model.safetensors is truncated", "Fetch it again"),
    "pointer": (leave_a_pointer, "not a safetensors file", "git lfs pull"),
    "lost shard": (lose_a_shard, "model-00002-of-00002.safetensors of its weights", "Fetch them"),
    "no weights": (lambda one: (one / "model.safetensors").unlink(), "no weights", "save_pretra"),
    "no configuration": (lambda one: (one / "config.json").unlink(), "no config.json", "save_"),
    "own code": (
        change("config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Model"}),
        "type 'mine', and its own code is not run (trust_remote_code)",
        "an architecture that transformers knows",
    ),
    "few positions": (
        shorten("transformer.wpe.weight", n_positions=150),
        "it reads 150 tokens, but the profile's limits amount to 200",
        "Lower instructions.max_prefix_tokens",
    ),
    "no EOS": (change("tokenizer_config.json", eos_token=None), "no EOS", "Name one as eos_token"),
    "no tokenizer": (no_tokenizer, "it holds no tokenizer", "own tokenizer files"),
    "another's tokenizer": (
        shorten("transformer.wte.weight", vocab_size=280),
        "has 300 entries and the model 280",
        "own tokenizer files",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_remedy(name, tmp_path):
    spoil, what, remedy = FAULTS[name]
    folder = gpt2_folder(tmp_path / "model")
    spoil(folder)
    [fault] = faults(folder, longest=200)
    assert what in fault.what and remedy in fault.remedy


def test_a_tokenizer_that_cannot_be_loaded_is_a_fault(tmp_path, monkeypatch):
    def broken(folder: Path) -> None:
        raise ValueError("no vocabulary\nat all")

    monkeypatch.setattr(model_folders, "load_tokenizer", broken)
    [fault] = faults(gpt2_folder(tmp_path / "model"))
    assert fault.what == "its tokenizer cannot be loaded (ValueError: no vocabulary at all)"


def test_every_fault_of_every_model_is_said_at_once(tmp_path):
    one, two = gpt2_folder(tmp_path / "one"), llama_folder(tmp_path / "two")
    pickle(one)
    change("tokenizer_config.json", eos_token=None)(one)
    cut_short(two)
    given = [f"models.gpt2.pretrained={one}", f"models.llama.pretrained={two}"]
    given += [f"instructions.path={tmp_path}", f"articles.path={tmp_path / 'none'}"]
    missing = [item for item in doctor.inputs("paper", given) if not item.ok]
    named = [(item.what, item.detail) for item in missing if item.what.startswith("model")]
    # 768 + 256 tokens; of an article 512, and a prefix of 15 % of them with its BOS.
    assert [what for what, _ in named] == ["model gpt2"] * 3 + ["model llama"] * 2
    for (_, detail), words in zip(
        named,
        ["only safetensors", "amount to 1024", "no EOS", "truncated", "amount to 1024"],
        strict=True,
    ):
        assert words in detail
    assert {item.what for item in missing} >= {"articles data"}
    assert all(item.remedy for item in missing)


def test_a_pickled_model_is_never_loaded(tmp_path, suite_of):
    folder = llama_folder(tmp_path / "model")
    pickle(folder)
    with pytest.raises(ModelFolderError, match="only safetensors are read. Convert it once"):
        suite_of(folder).base_model("llama")


def test_files_of_a_repository_tell_whether_it_can_be_read():
    assert missing_weights("a/b", ["config.json", "model.safetensors.index.json"]) is None
    fault = missing_weights("a/b", ["config.json", "pytorch_model-00001-of-00002.bin"])
    assert fault is not None and "pytorch_model-00001-of-00002.bin" in fault.what
    assert "./run_all.sh convert a/b FOLDER" in fault.remedy
    fault = missing_weights("a/b", ["config.json", "flax_model.msgpack"])
    assert fault is not None and "convert" not in fault.remedy
