"""Models from elsewhere: what a transformers folder has to hold, and what is wrong with one.

Weights are read from safetensors alone, since a pickle can run any code, and a model's own code is
never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of a repository on the hub: all that is read, and what tells without the weights if it can be.
SMALL_FILES = ("*.json", "*.txt", "*.model")
FILES = (*SMALL_FILES, "*.safetensors")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CONVERT = (
    'Convert it once where you trust its origin: python -c "from transformers import '
    "AutoModelForCausalLM as M, AutoTokenizer as T; [one.from_pretrained('{name}')"
    ".save_pretrained('FOLDER') for one in (M, T)]\", and give FOLDER in its place"
)


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a model folder, and what to do."""

    what: str
    remedy: str


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; code that comes with it is not run."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def faults(folder: Path, longest: int = 0) -> list[Fault]:
    """Everything that keeps a local folder from being used, found without loading the weights.

    `longest` is the length in tokens of the longest sequence it will have to read.
    """
    found = [weights_fault(folder), *text_faults(folder, longest)]
    return [one for one in found if one is not None]


def weights_fault(folder: Path) -> Fault | None:
    """What is wrong with the folder's weights, if anything."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if missing := missing_weights(str(folder), names):
        return missing
    shards = {WEIGHTS}
    if WEIGHTS not in names:
        try:
            shards = set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, AttributeError):
            return Fault(f"{INDEX} cannot be read", "Fetch it again")
        if lacking := sorted(shards - names):
            return Fault(f"{', '.join(lacking)} of its weights missing", "Fetch them again")
    for name in sorted(shards):
        if not _is_safetensors(folder / name):
            return Fault(
                f"{name} is cut short, or no safetensors file",
                "Fetch it again; after a `git clone` that is `git lfs pull`",
            )
    return None


def missing_weights(name: str, files: Iterable[str]) -> Fault | None:
    """The fault of a model, by the names of its files, if none of them are safetensors."""
    files = set(files)
    if {WEIGHTS, INDEX} & files:
        return None
    if pickled := sorted(one for one in files if one.endswith(PICKLED)):
        what = f"its weights are in {pickled[0]}, and only safetensors are read"
        return Fault(what, CONVERT.format(name=name))
    what = f"it holds no weights, {WEIGHTS} or {INDEX}"
    return Fault(what, "Give a folder that transformers' save_pretrained wrote, or a hub name")


def text_faults(folder: Path, longest: int = 0) -> list[Fault]:
    """What is wrong with a folder's configuration and tokenizer."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        what = "it holds no config.json with a model_type"
        return [Fault(what, "Give a folder that transformers' save_pretrained wrote")]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    found = []
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        own = ", and its own code is not run (trust_remote_code)" if "auto_map" in config else ""
        found.append(
            Fault(
                f"transformers has no causal language model of the type '{kind}'{own}",
                "Give a model of an architecture that transformers knows",
            )
        )
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and positions < longest:
        found.append(
            Fault(
                f"it reads {positions} tokens, and the profile's limits come to {longest}",
                "Lower instructions.max_prefix_tokens, instructions.max_continuation_tokens or "
                "articles.max_tokens, or give a model with a longer context",
            )
        )
    return [*found, *_tokenizer_faults(folder, config)]


def _tokenizer_faults(folder: Path, config: dict[str, Any]) -> list[Fault]:
    # Without files transformers may make an empty tokenizer, without a word.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        what = f"it holds no tokenizer: none of {', '.join(VOCABULARIES)}"
        return [Fault(what, "Put the model's own tokenizer files beside its weights")]
    try:
        tokenizer = load_tokenizer(folder)
    except Exception as error:  # tokenizers fail in many ways; to a user all mean the same
        words = " ".join(str(error).split())[:200]
        what = f"its tokenizer cannot be loaded ({type(error).__name__}: {words})"
        return [Fault(what, "Put the model's own tokenizer files beside its weights")]
    found = []
    if tokenizer.eos_token_id is None:
        found.append(
            Fault(
                "its tokenizer has no EOS token, so a model could not learn to stop",
                "Name one as eos_token in its tokenizer_config.json",
            )
        )
    entries = config.get("vocab_size")
    if entries is not None and len(tokenizer) > entries:
        found.append(
            Fault(
                f"its tokenizer has {len(tokenizer):,} entries and the model {entries:,}",
                "Put the model's own tokenizer files beside its weights",
            )
        )
    return found


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return bool(list(file.keys()))
    except (OSError, SafetensorError):
        return False
