"""Models from elsewhere: what one has to hold, what is wrong with it, and the way to load it.

Weights are read from safetensors or .gguf alone, since a pickle can run any code, and a model's own
code is never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cpo.models.gguf import INSTEAD, SUFFIX, gguf_fault, gguf_file, left_out, storage
from cpo.models.weights import (
    INDEX,
    MERGE,
    TOGETHER,
    WEIGHTS,
    Fault,
    ModelFolderError,
    fault_of,
    misfit,
    quantisation,
    quantised,
    quietly,
    shards,
    stored_weights,
)

# Of a repository on the hub: all that is read, and what tells without the weights if it can be.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
FILES = (*SMALL_FILES, "*.safetensors")
ADAPTER = "adapter_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CONVERT = (
    'Convert it once where you trust its origin: python -c "from transformers import '
    "AutoModelForCausalLM as M, AutoTokenizer as T; [one.from_pretrained('{name}')"
    ".save_pretrained('FOLDER') for one in (M, T)]\", and give FOLDER in its place"
)
# Heads with which a causal language model's folder may be saved, beside the mapping's own classes.
CAUSAL_HEADS = ("Model", "ForCausalLM", "ForConditionalGeneration")


def fetched(name: str) -> Path:
    """Where a model lies: an absolute path as it is, any other name after fetching it from the hub.

    Raises:
        FileNotFoundError: neither here nor reachable on the hub; says what to do.
        ModelFolderError: its weights are in no file that is read, or those files are damaged.
    """
    place = Path(name)
    if not place.is_absolute():
        place = _from_hub(name)
    elif not place.exists():
        kind = ".gguf file" if place.suffix == SUFFIX else "folder"
        raise FileNotFoundError(f"'{name}' is not there: no such {kind}")
    if fault := files_fault(place):
        raise ModelFolderError(f"model {name}: {fault.what}. {fault.remedy}.")
    return place


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:
        raise FileNotFoundError(
            f"'{name}' is no folder beside the profile's file and could not be fetched from the "
            f"hub ({type(error).__name__}). Give the path of a transformers folder or a .gguf "
            "file, or connect to the hub."
        ) from error
    if not {WEIGHTS, INDEX, ADAPTER} & {path.name for path in folder.iterdir()}:
        # What it has in their place was not fetched.
        raise ModelFolderError(
            f"model {name}: its repository has no safetensors. {CONVERT.format(name=name)}."
        )
    return folder


def load_tokenizer(place: Path) -> Any:
    """The tokenizer of a model folder or .gguf file; code that comes with it is not run."""
    from transformers import AutoTokenizer

    folder, arguments = place, {}
    if file := gguf_file(place):
        folder, arguments = file.parent, {"gguf_file": file.name}
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **arguments)


def load_model(place: Path, dtype: Any = "float32", may_be_quantised: bool = False) -> Any:
    """The causal language model of a folder or .gguf file, on the CPU, in evaluation mode.

    What transformers warns of beside its report is warned of here.

    Args:
        dtype: of `torch`, or "auto" for the one that the weights are stored in.
        may_be_quantised: take weights that are no real numbers, for what only reads answers.

    Raises:
        ModelFolderError: a weight is missing, unknown, of another shape or quantised, or
            transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    file = gguf_file(place)
    fault = gguf_fault(file) if file else weights_fault(place, may_be_quantised)
    if fault:
        raise ModelFolderError(f"{place}: {fault.what}. {fault.remedy}.")
    arguments: dict[str, Any] = {"use_safetensors": True}
    if file:
        from transformers import GgufConfig

        arguments = {
            "gguf_file": file.name,
            "quantization_config": GgufConfig(dequantize=True),
        }
    with quietly() as said:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent if file else place,
                dtype=dtype,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **arguments,
            )
        except (RuntimeError, ValueError, ImportError) as error:
            names = re.findall(r"^(\S+) +\| .*CONVERSION", "\n".join(said), re.MULTILINE)
            words = " ".join(str(error).split())
            if names:  # what a weight is joined of is missing, or of another shape
                words = f"{len(names)} weights cannot be joined, {', '.join(names[:3])}. {TOGETHER}"
            raise ModelFolderError(f"{place}: it cannot be loaded: {words}.") from error
    model, report = loaded
    fault = fault_of(model, report, {} if file else stored_weights(place))
    if file and not fault and (names := left_out(file, model)):
        fault = Fault(
            f"transformers leaves out {len(names)} of its tensors ({', '.join(names[:3])})",
            INSTEAD,
        )
    if fault:
        raise ModelFolderError(f"{place}: {fault.what}. {fault.remedy}.")
    for words in said:
        if "LOAD REPORT" not in words:  # what it ignores, as it may
            warnings.warn(f"{place}: {words}", stacklevel=2)
    return model


def dequantise(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a .gguf file as a folder of fp32 safetensors.

    Raises:
        ModelFolderError: as `load_model`.
    """
    load_model(file).save_pretrained(folder)
    load_tokenizer(file).save_pretrained(folder)
    print(f"{file.name}: {storage(file)}; unpacked into fp32, as rounded as it was", flush=True)


def faults(place: Path, longest: int = 0, may_be_quantised: bool = False) -> list[Fault]:
    """Everything that keeps a local model from being used, found without loading the weights.

    Args:
        place: a folder, or a .gguf file.
        longest: the length in tokens of the longest sequence it will have to read.
        may_be_quantised: as for `load_model`.
    """
    if file := gguf_file(place):
        fault = gguf_fault(file)
        return [fault] if fault else _gguf_text_faults(file, longest)
    fault = weights_fault(place, may_be_quantised)
    if fault and (place / ADAPTER).is_file():
        return [fault]
    return [*([fault] if fault else []), *text_faults(place, longest)]


def weights_fault(folder: Path, may_be_quantised: bool = False) -> Fault | None:
    """What is wrong with the folder's weights, if anything: files, names, shapes and dtypes."""
    if fault := files_fault(folder):
        return fault
    if fault := quantisation_fault(folder):
        return None if may_be_quantised else fault
    return misfit(folder)


def quantisation_fault(folder: Path) -> Fault | None:
    """The fault of a folder whose config.json says that its weights are quantised."""
    try:
        how = quantisation(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None  # that it cannot be read is a fault of its own
    return quantised(how) if how else None


def files_fault(place: Path) -> Fault | None:
    """What is wrong with the files that hold the weights, if anything."""
    if gguf_file(place):
        return None
    names = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if missing := missing_weights(str(place), names):
        return missing
    try:
        files = shards(place)
    except (OSError, ValueError, LookupError, AttributeError):
        return Fault(f"{INDEX} cannot be read", "Fetch it again")
    if lacking := [path.name for path in files if path.name not in names]:
        return Fault(f"{', '.join(lacking)} of its weights missing", "Fetch them again")
    for path in files:
        if not _is_safetensors(path):
            return Fault(
                f"{path.name} is cut short, or no safetensors file",
                "Fetch it again; after a `git clone` that is `git lfs pull`",
            )
    return None


def missing_weights(name: str, files: Iterable[str]) -> Fault | None:
    """The fault of a model, by the names of its files, if none of them are safetensors."""
    files = set(files)
    if ADAPTER in files:
        # Whether peft is installed would decide if it is put on the model or left out.
        beside = "beside a model" if "config.json" in files else "and not a whole model"
        return Fault(f"it holds a PEFT adapter {beside} ({ADAPTER})", MERGE.format(name=name))
    if {WEIGHTS, INDEX} & files:
        return None
    if several := sorted(file for file in files if file.endswith(SUFFIX)):
        what = f"its weights are in {', '.join(several[:3])}, one of which has to be named"
        return Fault(what, "Give the path of one, on this machine")
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
    found = _config_faults(config, kind, longest)
    # Without files transformers may make an empty tokenizer, without a word.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        what = f"it holds no tokenizer: none of {', '.join(VOCABULARIES)}"
        return [*found, Fault(what, "Put the model's own tokenizer files beside its weights")]
    return [*found, *_tokenizer_faults(folder, config)]


def _gguf_text_faults(file: Path, longest: int) -> list[Fault]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    found = _config_faults(config, config["model_type"], longest)
    return [*found, *_tokenizer_faults(file, config)]


def _config_faults(config: Mapping[str, Any], kind: str, longest: int) -> list[Fault]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = []
    if kind not in CAUSAL:
        own = ", and its own code is not run (trust_remote_code)" if "auto_map" in config else ""
        found.append(
            Fault(
                f"transformers has no causal language model of the type '{kind}'{own}",
                "Give a model of an architecture that transformers knows",
            )
        )
    else:
        named = config.get("architectures") or []
        others = [name for name in named if not name.endswith(CAUSAL_HEADS)]
        if others and not set(named) & set(CAUSAL.values()):
            found.append(
                Fault(
                    f"its config.json calls it a {others[0]}, which is no causal language model",
                    f"Give one; if this is a {CAUSAL[kind]}, name that as its architectures",
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
    return found


def _tokenizer_faults(place: Path, config: Mapping[str, Any]) -> list[Fault]:
    try:
        tokenizer = load_tokenizer(place)
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
