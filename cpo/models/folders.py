"""External models: what a folder must contain, what is wrong with it, and how to load it.

Weights are read only from safetensors or .gguf, since a pickle can run any code: `pickles` converts
one, once. A model's own code is never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cpo.models import gguf, weights
from cpo.models.gguf import gguf_file, location, storage
from cpo.models.weights import Fault, ModelFolderError, quantisation_fault, summary

# Files read from a hub repository, and those that suffice to check it without its weights.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
FILES = (*SMALL_FILES, "*.safetensors")
ADAPTER = "adapter_config.json"
PLAIN = ("tokenizer.json", "vocab.json", "vocab.txt")  # vocabularies that need no other package
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
CONVERT = "Convert it once: ./run_all.sh convert {name} FOLDER, and use FOLDER instead"
MERGE = (
    'Merge it into its model: pip install peft; python -c "from peft import '
    "AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
    "M.from_pretrained('{name}').merge_and_unload().save_pretrained('FOLDER'); "
    "T.from_pretrained('{name}').save_pretrained('FOLDER')\", and use FOLDER instead"
)
SAVED = "Give a folder that transformers' save_pretrained wrote"
TOKENIZER = "Put the model's own tokenizer files beside its weights"
# Class suffixes under which a causal language model may be saved, besides the mapping's own.
CAUSAL_HEADS = ("Model", "ForCausalLM", "ForConditionalGeneration")


def fetched(name: str) -> Path:
    """The local path of a model: an absolute path as it is, any other name fetched from the hub.

    Raises:
        FileNotFoundError: neither local nor reachable on the hub; says what to do.
        ModelFolderError: its weight files are of an unsupported kind or damaged.
    """
    from huggingface_hub import snapshot_download

    place = Path(name)
    if not place.is_absolute():
        try:
            place = Path(snapshot_download(name, allow_patterns=list(FILES)))
        except Exception as error:
            raise FileNotFoundError(
                f"'{name}' is not a folder beside the profile and could not be fetched from "
                f"the hub ({type(error).__name__}). Give the path of a transformers folder or a "
                ".gguf file, or connect to the hub."
            ) from error
    elif not place.exists():
        raise FileNotFoundError(f"'{name}' does not exist: no such .gguf file or folder")
    _refuse(f"model {name}", files_fault(place, name))
    return place


def load_tokenizer(place: Path) -> Any:
    """The tokenizer of a model folder or .gguf file; its own code is not run."""
    from transformers import AutoTokenizer

    folder, file = location(place)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **file)


def load_model(place: Path, dtype: Any = "float32", may_be_quantised: bool = False) -> Any:
    """The causal language model of a folder or .gguf file, on the CPU, in evaluation mode.

    Passes on transformers' warnings, except its load report.

    Args:
        dtype: a `torch` dtype, or "auto" for the stored one.
        may_be_quantised: accept quantised weights, which suffice for inference.

    Raises:
        ModelFolderError: a weight is missing, unknown, misshapen or quantised, or transformers
            cannot load the model.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    _refuse(place, weights_fault(place, may_be_quantised))
    folder, arguments = location(place)
    if file := gguf_file(place):
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    arguments |= {"dtype": dtype, "use_safetensors": True}
    model, report, messages = weights.load(AutoModelForCausalLM, folder, **arguments)
    stored = {} if file else weights.stored_weights(place)
    _refuse(place, weights.misfit(folder, model, report, stored))
    _refuse(place, gguf.left_out(file, model) if file else None)
    for message in messages:
        warnings.warn(f"{place}: {message}", stacklevel=2)
    return model


def _refuse(place: Path | str, fault: Fault | None) -> None:
    if fault:
        raise ModelFolderError(f"{place}: {fault}")


def dequantise(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a .gguf file as a folder of fp32 safetensors.

    Raises:
        ModelFolderError: as `load_model`.
    """
    load_model(file).save_pretrained(folder)
    load_tokenizer(file).save_pretrained(folder)
    print(f"{file.name}: {storage(file)}; unpacked into fp32 at its original precision", flush=True)


def faults(place: Path, longest: int = 0, may_be_quantised: bool = False) -> list[Fault]:
    """Everything that keeps a local model from being used, determined without loading weights.

    Args:
        place: a folder, or a .gguf file.
        longest: tokens in the longest sequence it must read.
        may_be_quantised: as for `load_model`.
    """
    fault = weights_fault(place, may_be_quantised)
    if fault and (gguf_file(place) or (place / ADAPTER).is_file()):
        return [fault]
    return [*([fault] if fault else []), *text_faults(place, longest)]


def weights_fault(place: Path, may_be_quantised: bool = False) -> Fault | None:
    """What is wrong with a model's weights, if anything, judging by files and headers."""
    if file := gguf_file(place):
        return gguf.gguf_fault(file)
    if fault := files_fault(place):
        return fault
    if fault := quantisation_fault(place):
        return None if may_be_quantised else fault
    return weights.header_fault(place)


def files_fault(place: Path, name: str = "") -> Fault | None:
    """What is wrong with the weight files, if anything.

    Args:
        name: the model's name in remedies, if not its path.
    """
    if gguf_file(place):
        return None
    names = {path.name for path in place.iterdir()} if place.is_dir() else set()
    if fault := missing_weights(name or str(place), names):
        return fault
    path = place / weights.INDEX
    try:
        for path in weights.shards(place):
            weights.header(path)
    except FileNotFoundError:
        return Fault(f"{path.name} of its weights is missing", "Fetch them again")
    except Exception as error:
        what = f"{path.name} is truncated or not a safetensors file ({summary(error)})"
        return Fault(what, weights.FETCH)
    return None


def missing_weights(name: str, files: Iterable[str]) -> Fault | None:
    """The fault of a model whose files, by their names, are not safetensors."""
    files = sorted(files)
    if ADAPTER in files:
        # Otherwise an installed peft would decide whether the adapter is applied.
        beside = "beside a model" if "config.json" in files else "and not a whole model"
        return Fault(f"it holds a PEFT adapter {beside} ({ADAPTER})", MERGE.format(name=name))
    if weights.WEIGHTS in files or weights.INDEX in files:
        return None
    if several := [file for file in files if file.endswith(gguf.SUFFIX)]:
        what = f"its weights are in {', '.join(several[:3])}, one of which must be named"
        return Fault(what, "Give the path of one, on this machine")
    if pickled := [file for file in files if file.endswith(PICKLED)]:
        what = f"its weights are in {pickled[0]}, but only safetensors are read"
        ours = pickled[0].startswith("pytorch_model") and pickled[0].endswith(".bin")
        return Fault(what, CONVERT.format(name=name) if ours else SAVED)
    return Fault(
        f"it holds no weights, {weights.WEIGHTS} or {weights.INDEX}",
        f"{SAVED}, or a hub name. If its repository has pytorch_model.bin: "
        f"{CONVERT.format(name=name)}",
    )


def text_faults(place: Path, longest: int = 0) -> list[Fault]:
    """What is wrong with a model's configuration and tokenizer."""
    from transformers import PreTrainedConfig

    folder, file = location(place)
    try:
        config = PreTrainedConfig.get_config_dict(folder, **file)[0]
        config["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return [Fault("it holds no config.json with a model_type", SAVED)]
    return [*_config_faults(config, longest), *_tokenizer_faults(place, config)]


def _config_faults(config: Mapping[str, Any], longest: int) -> Iterator[Fault]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config["model_type"]
    architectures = config.get("architectures") or []
    others = [name for name in architectures if not name.endswith(CAUSAL_HEADS)]
    if kind not in CAUSAL:
        own = ", and its own code is not run (trust_remote_code)" if "auto_map" in config else ""
        yield Fault(
            f"transformers has no causal language model of the type '{kind}'{own}",
            "Give a model of an architecture that transformers knows",
        )
    elif others and not set(architectures) & set(CAUSAL.values()):
        yield Fault(
            f"its config.json calls it a {others[0]}, which is not a causal language model",
            f"Give one; if this is a {CAUSAL[kind]}, name that as its architectures",
        )
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and positions < longest:
        yield Fault(
            f"it reads {positions} tokens, but the profile's limits amount to {longest}",
            "Lower instructions.max_prefix_tokens, instructions.max_continuation_tokens or "
            "articles.max_tokens, or give a model with a longer context",
        )


def _tokenizer_faults(place: Path, config: Mapping[str, Any]) -> Iterator[Fault]:
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    # Without these files, transformers may silently create an empty tokenizer.
    if not gguf_file(place) and not any((place / name).is_file() for name in VOCABULARIES):
        yield Fault(f"it holds no tokenizer: none of {', '.join(VOCABULARIES)}", TOKENIZER)
        return
    plain = gguf_file(place) or any((place / name).is_file() for name in PLAIN)
    if not plain and not (is_sentencepiece_available() and is_protobuf_available()):
        what = "its tokenizer is a sentencepiece model, which two more packages read"
        yield Fault(what, "pip install sentencepiece protobuf")
        return
    try:
        tokenizer = load_tokenizer(place)
    except Exception as error:  # many exception types, one meaning to the user
        yield Fault(f"its tokenizer cannot be loaded ({summary(error)})", TOKENIZER)
        return
    if tokenizer.eos_token_id is None:
        yield Fault(
            "its tokenizer has no EOS token, so a model could not learn to stop",
            "Name one as eos_token in its tokenizer_config.json",
        )
    entries = config.get("vocab_size")
    if entries is not None and len(tokenizer) > entries:
        what = f"its tokenizer has {len(tokenizer):,} entries and the model {entries:,}"
        yield Fault(what, TOKENIZER)
