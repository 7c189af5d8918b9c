"""Pickled weights: converted into what they were saved from, and no code of theirs ever runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file
from stand_ins import gpt2_folder, llama_folder
from test_model_folders import no_tokenizer, pickle

from cpo.models import pickles
from cpo.models.folders import ModelFolderError, faults, load_model, load_tokenizer

IDS = torch.tensor([[3, 50, 260, 7, 91]])


def whole(folder: Path) -> None:
    pickle(folder)


def legacy(folder: Path) -> None:
    """As torch wrote before 1.6, without a zip archive."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()


def with_its_head(folder: Path, name: str = "pytorch_model.bin") -> dict[str, torch.Tensor]:
    """The weights of a tied Llama with the head as an entry of its own, as a state dict has it."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, folder / name)
    (folder / "model.safetensors").unlink()
    return weights


def in_parts(folder: Path) -> None:
    """Two parts with an index; a tied head lies in another part than the embedding."""
    weights = load_file(folder / "model.safetensors")
    if "lm_head.weight" not in weights and "model.embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {
        name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin"
        for number, name in enumerate(names)
    }
    for part in set(places.values()):
        torch.save({name: weights[name] for name in names if places[name] == part}, folder / part)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def tied(folder: Path) -> Path:
    return llama_folder(folder, tied=True)


@pytest.mark.parametrize(
    ("make", "spoil"),
    [
        (gpt2_folder, whole),
        (gpt2_folder, in_parts),
        (llama_folder, whole),
        (llama_folder, legacy),
        (llama_folder, in_parts),
        (tied, with_its_head),
        (tied, in_parts),
    ],
)
def test_the_converted_model_is_the_one_that_was_pickled(make, spoil, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_in_another_process", lambda work, *given: work(*given))
    source, target = make(tmp_path / "source"), tmp_path / "target"
    stored, before = load_file(source / "model.safetensors"), load_model(source)(IDS).logits
    spoil(source)
    lines: list[str] = []
    pickles.convert(str(source), target, lines.append)
    assert torch.equal(load_model(target)(IDS).logits, before)
    assert faults(target, longest=200) == []
    assert load_tokenizer(target).get_vocab() == load_tokenizer(source).get_vocab()
    converted = load_file(target / "model.safetensors")
    # A tied head is stored once, under the name that transformers gives it.
    assert converted.keys() == stored.keys()
    assert all(converted[name].dtype == stored[name].dtype for name in stored)
    assert not [path for path in target.iterdir() if "pytorch_model" in path.name]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    said = "\n".join(lines)
    for part in (str(source), str(target), "GB", "No code is executed from the pickle"):
        assert part in said


def test_large_weights_are_written_in_parts_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_in_another_process", lambda work, *given: work(*given))
    monkeypatch.setattr(pickles, "SHARD", "40kB")
    source, target = llama_folder(tmp_path / "source"), tmp_path / "deep" / "target"
    before = load_model(source)(IDS).logits
    in_parts(source)
    pickles.convert(str(source), target)
    assert len(list(target.glob("model-*.safetensors"))) > 1
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" in index["weight_map"]
    assert torch.equal(load_model(target)(IDS).logits, before)


class Dropper:
    """What a pickle can do: to unpickle it is to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.path), "w")


def drop(folder: Path, **options: Any) -> None:
    weights = load_file(folder / "model.safetensors") | {
        "extra": Dropper(folder.parent / "dropped")
    }
    torch.save(weights, folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()


def drop_as_before(folder: Path) -> None:
    drop(folder, _use_new_zipfile_serialization=False)


def keep_a_step(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"step": 7}
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    pickle(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_legacy(folder: Path) -> None:
    legacy(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])


def leave_a_pointer(folder: Path) -> None:
    pickle(folder)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 548105171\n"
    (folder / "pytorch_model.bin").write_text(text)


def lose_a_part(folder: Path) -> None:
    in_parts(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def lose_the_index(folder: Path) -> None:
    in_parts(folder)
    (folder / "pytorch_model.bin.index.json").unlink()


def lose_the_tokenizer(folder: Path) -> None:
    pickle(folder)
    no_tokenizer(folder)


def lose_the_configuration(folder: Path) -> None:
    pickle(folder)
    (folder / "config.json").unlink()


def lose_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


REFUSED = {
    "malicious": (drop, "refused: it holds the object", "none of it was run"),
    "malicious, legacy": (drop_as_before, "refused: it holds the object", "none of it was run"),
    "a number": (keep_a_step, "it holds a int named 'step', not tensors alone", "safetensors"),
    "cut": (cut, "pytorch_model.bin is truncated", "Fetch it again"),
    "cut, legacy": (cut_legacy, "pytorch_model.bin is truncated", "Fetch it again"),
    "a pointer": (leave_a_pointer, "truncated or no checkpoint", "git lfs pull"),
    "a part": (lose_a_part, "lacks pytorch_model-00002-of-00002.bin", "Fetch it again"),
    "the index": (lose_the_index, "it has parts but no index", "Fetch it again"),
    "the tokenizer": (lose_the_tokenizer, "it holds no tokenizer", "own tokenizer files"),
    "the configuration": (lose_the_configuration, "no config.json", "save_pretrained"),
    "a weight": (lose_a_weight, "1 missing (model.norm.weight)", "Fetch it again"),
    "safetensors": (lambda folder: None, "has safetensors already", "Use it as it is"),
    "nothing": (shutil.rmtree, "could not be fetched from the hub", "Give the path of a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_cannot_be_converted_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_in_another_process", lambda work, *given: work(*given))
    spoil, what, remedy = REFUSED[name]
    source = llama_folder(tmp_path / "source")
    spoil(source)
    with pytest.raises((ModelFolderError, FileNotFoundError)) as said:
        pickles.convert(str(source), tmp_path / "target")
    assert what in str(said.value) and remedy in str(said.value)
    assert "\n" not in str(said.value)
    assert [path.name for path in tmp_path.iterdir()] in (["source"], [])  # and no file dropped


def test_nothing_is_written_over_and_a_full_disk_is_told_before(tmp_path, monkeypatch):
    source = llama_folder(tmp_path / "source")
    pickle(source)
    (tmp_path / "target").mkdir()
    with pytest.raises(ModelFolderError, match="exists already"):
        pickles.convert(str(source), tmp_path / "target")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelFolderError, match="1e-06 GB free, and .* are needed. Free space"):
        pickles.convert(str(source), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_killed_reader_is_told(tmp_path):
    with pytest.raises(ModelFolderError, match="was killed, as happens where memory is short"):
        pickles._in_another_process(os._exit, 9)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cpo_suite", "convert", *arguments],
        env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
    )


def test_the_command_converts_a_repository_of_the_hub(tmp_path):
    source, target = llama_folder(tmp_path / "source"), tmp_path / "target"
    before = load_model(source)(IDS).logits
    pickle(source)
    with HubServer({"openlm-research/open_llama_3b": source}, {}) as hub:
        given = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        done = command("openlm-research/open_llama_3b", str(target), **given)
        assert done.returncode == 0, done.stderr
        assert "pytorch_model.bin" in hub.sent
    assert torch.equal(load_model(target)(IDS).logits, before)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["Fetches", "Reads", "Writes", "No", "Written"]
    shutil.rmtree(target)
    drop(llama_folder(tmp_path / "bad"))
    done = command(str(tmp_path / "bad"), str(target))
    assert done.returncode == 2 and "refused" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "dropped").exists() and not target.exists()
