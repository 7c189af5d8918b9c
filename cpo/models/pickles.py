"""Weights in pickles, `pytorch_model.bin`, converted once into safetensors.

A pickle can run any code when it is read. `torch.load(weights_only=True)` reads tensors and plain
values alone, in a process of its own, and refuses everything else.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo.models.folders import SMALL_FILES, text_faults, weights_fault
from cpo.models.weights import FETCH, INDEX, WEIGHTS, ModelFolderError, summary

if TYPE_CHECKING:
    from torch import Tensor

PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLES = "pytorch_model*.bin"
INDEXES = (INDEX, PICKLE_INDEX)
SHARD = "5GB"
# How torch's unpickler names an object that it does not make.
FOREIGN = re.compile(r"(?:GLOBAL|unrecognized function|but got) (\S+)")
OBJECT = (
    "{file} is refused: it holds {what}, not tensors alone, and none of it was run. Do not read it "
    "by other means unless you trust its origin; ask its author for safetensors"
)


def convert(source: str, target: Path, say: Callable[[str], None] = print) -> None:
    """Write a model whose weights are in pickles as a folder of safetensors.

    Weights keep their dtype; those that share memory, or that the configuration ties, are stored
    once. The folder appears complete or not at all.

    Args:
        source: a folder, or a hub name, which is fetched.
        target: the folder to write, which must not exist.
        say: is told what is read and written, and that no code is executed.

    Raises:
        FileNotFoundError: `source` is neither a folder nor a name that the hub knows.
        ModelFolderError: the target exists, a file is missing, truncated or no checkpoint, a pickle
            holds more than tensors, the result is not a model's, or the disk is too small.
    """
    if os.path.lexists(target):
        raise ModelFolderError(f"{target} exists already. Name another, or remove it.")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = _fetched(source, say)
    files = _pickles(folder, source)
    _check_small_files(folder, source)
    size = sum(path.stat().st_size for path in files)
    say(f"Reads {', '.join(path.name for path in files)} in {folder}: {_gb(size)}.")
    say(f"Writes safetensors, config and tokenizer to {target}: up to {_gb(size)}.")
    say("No code is executed from the pickle: torch reads tensors alone (weights_only).")
    _make_room(target, size)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _in_another_process(_write, files, temporary, folder)
        if fault := weights_fault(temporary):
            raise ModelFolderError(f"{source}: {fault}")
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    written = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    say(f"Written and checked: {target}, {_gb(written)}.")


# --- Files ----------------------------------------------------------------------------------------


def _fetched(name: str, say: Callable[[str], None]) -> Path:
    """The local copy of a hub repository without safetensors."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        listed = list(HfApi().list_repo_tree(name))
        sizes = {file.path: getattr(file, "size", 0) for file in listed}
        _refuse_safetensors(sizes, name)
        size = sum(size for file, size in sizes.items() if Path(file).match(PICKLES))
        say(f"Fetches {name} from the hub, unless it is in its cache, {HF_HUB_CACHE}: {_gb(size)}.")
        small = list(SMALL_FILES)
        _check_small_files(Path(snapshot_download(name, allow_patterns=small)), name)
        return Path(snapshot_download(name, allow_patterns=[*small, PICKLES]))
    except ModelFolderError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise FileNotFoundError(
            f"'{name}' is no folder here and could not be fetched from the hub ({summary(error)}). "
            "Give the path of a folder, or connect to the hub."
        ) from error


def _check_small_files(folder: Path, source: str) -> None:
    """Refuse a model whose configuration or tokenizer cannot be used, before its weights are
    read."""
    if faults := text_faults(folder):
        raise ModelFolderError(f"{source}: {faults[0]}")


def _refuse_safetensors(names: Mapping[str, Any] | Sequence[str], source: str) -> None:
    if WEIGHTS in names or INDEX in names:
        raise ModelFolderError(f"{source} has safetensors already. Use it as it is.")


def _pickles(folder: Path, source: str) -> list[Path]:
    """The pickles with a folder's weights, as its index lists them if it has one."""
    names = {path.name for path in folder.iterdir()}
    _refuse_safetensors(sorted(names), source)
    if PICKLE in names:
        return [folder / PICKLE]
    if PICKLE_INDEX not in names:
        missing = "it has parts but no index" if list(folder.glob(PICKLES)) else "it has neither"
        what = f"{source} lacks {PICKLE} or {PICKLE_INDEX}: {missing}"
        raise ModelFolderError(f"{what}. Fetch it again, whole.")
    try:
        index = json.loads((folder / PICKLE_INDEX).read_text("utf-8"))
        parts = sorted(set(index["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"{PICKLE_INDEX} in {folder} is damaged ({summary(error)})"
        raise ModelFolderError(f"{what}. {FETCH}.") from error
    if missing := ", ".join(part for part in parts if part not in names):
        raise ModelFolderError(f"{source} lacks {missing}, which its index lists. {FETCH}.")
    return [folder / part for part in parts]


def _make_room(target: Path, size: int) -> None:
    existing = next(path for path in target.absolute().parents if path.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        what = f"{existing} has {_gb(free)} free, and {_gb(size)} are needed"
        raise ModelFolderError(f"{what}. Free space, or write to another disk.")


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


# --- Conversion -----------------------------------------------------------------------------------


def _in_another_process(work: Callable[..., None], *arguments: Any) -> None:
    """Run `work` in a new process, which may crash or be killed without ending this one."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(work, *arguments).result()
    except BrokenProcessPool as error:
        raise ModelFolderError(
            "The process that read the pickle was killed, as happens where memory is short. Close "
            "other programs, or convert on a machine with more memory than the pickle's size."
        ) from error


def _write(files: Sequence[Path], folder: Path, source: Path) -> None:
    """Write the weights of some pickles, and the small files beside them, into an empty folder."""
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    weights: dict[str, Tensor] = {}
    for path in files:
        weights |= _tensors(path)
    tied = _tied(source)
    for head, embedding in tied.items():  # stored in different parts, they share no memory
        if {head, embedding} <= weights.keys() and weights[head].equal(weights[embedding]):
            weights[head] = weights[embedding]
    try:
        discarded = list(tied)
        save_torch_state_dict(
            weights, folder, max_shard_size=SHARD, shared_tensors_to_discard=discarded
        )
        for pattern in SMALL_FILES:
            for path in source.glob(pattern):
                if path.name not in INDEXES:
                    shutil.copyfile(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        what = f"{folder.parent} cannot be written to ({summary(error)})"
        raise ModelFolderError(f"{what}. Free space, or write to another disk.") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name; no object is made from it but tensors and plain values."""
    import torch

    zipped = zipfile.is_zipfile(path)  # as torch has written since 1.6; older files are read whole
    try:
        content = torch.load(path, weights_only=True, mmap=zipped, map_location="cpu")
    except (RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise _damaged(path, error) from error
    except pickle.UnpicklingError as error:
        if not (foreign := FOREIGN.search(str(error))):
            raise _damaged(path, error) from error
        what = f"the object {foreign[1]}"
        raise ModelFolderError(f"{OBJECT.format(file=path.name, what=what)}.") from None
    if not isinstance(content, Mapping):
        what = f"a {type(content).__name__}"
        raise ModelFolderError(f"{OBJECT.format(file=path.name, what=what)}.")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            what = f"a {type(value).__name__} named {name!r}"
            raise ModelFolderError(f"{OBJECT.format(file=path.name, what=what)}.")
    return {name: value.detach() for name, value in content.items()}


def _damaged(path: Path, error: Exception) -> ModelFolderError:
    what = f"{path.name} is truncated or no checkpoint of torch ({summary(error)})"
    return ModelFolderError(f"{what}. {FETCH}.")


def _tied(folder: Path) -> dict[str, str]:
    """Names of the weights that a folder's configuration ties, with those that they equal."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if not config.get_text_config().tie_word_embeddings:
        return {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return dict(getattr(model, "all_tied_weights_keys", {}))
