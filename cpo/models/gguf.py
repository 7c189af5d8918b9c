"""Models as llama.cpp keeps them: one .gguf file with weights, configuration and tokenizer.

transformers reads those of some architectures. Most are quantised: a suite works with the real
numbers that come out, and says from how many bits they came.
"""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cpo.models.weights import Fault

SUFFIX = ".gguf"
INSTEAD = "Give the model's own folder, with safetensors, in its place"


def gguf_file(place: Path) -> Path | None:
    """The .gguf file that a path means: itself, or the only one in a folder without safetensors."""
    if place.suffix == SUFFIX and not place.is_dir():
        return place
    files = list(place.glob(f"*{SUFFIX}"))
    return files[0] if len(files) == 1 and not any(place.glob("*.safetensors")) else None


def storage(file: Path) -> str:
    """How most of a file's numbers are stored, and with how many bits each on average."""
    elements: Counter[str] = Counter()
    size = 0
    for tensor in _reader(file).tensors:
        elements[tensor.tensor_type.name] += int(tensor.n_elements)
        size += int(tensor.n_bytes)
    return f"{elements.most_common(1)[0][0]}, {8 * size / elements.total():.1f} bits a weight"


def gguf_fault(file: Path) -> Fault | None:
    """What keeps a .gguf file from being read, seen without its weights."""
    from transformers import AutoConfig

    if find_spec("gguf") is None:
        return Fault("reading a .gguf file takes the package gguf", "pip install gguf")
    try:
        reader = _reader(file)
        names = [tensor.name for tensor in reader.tensors]
    except Exception as error:  # what is cut short fails wherever it ends
        return Fault(
            f"{file.name} is cut short, or no GGUF file ({_words(error)})",
            "Fetch it again; after a `git clone` that is `git lfs pull`",
        )
    parts = reader.get_field("split.count")
    if parts is not None and parts.contents() > 1:
        return Fault(
            f"{file.name} is one of {parts.contents()} parts",
            "Merge them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
        )
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # many kinds, by architecture
        return Fault(f"transformers cannot read {file.name} ({_words(error)})", INSTEAD)
    scaled = [name for name in names if name.startswith("rope_")]
    scaled += [
        f"{key}: {field.contents()}"
        for key, field in reader.fields.items()
        if key.endswith("rope.scaling.type") and field.contents() != "none"
    ]
    rope = getattr(config, "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        return Fault(
            f"it scales its rotary positions ({scaled[0]}), which transformers leaves out", INSTEAD
        )
    return None


def left_out(file: Path, model: Any) -> list[str]:
    """The tensors of a file that have no place in the model that transformers made of it."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    reader = _reader(file)
    head = {"output.weight"} if model.config.get_text_config().tie_word_embeddings else set()
    tensors = {one.name: int(one.n_elements) for one in reader.tensors if one.name not in head}
    if sum(tensors.values()) == sum(weight.numel() for weight in model.parameters()):
        return []
    architecture = reader.get_field("general.architecture").contents()
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    layers = model.config.get_text_config().num_hidden_layers
    names = get_tensor_name_map(architectures[architecture], layers)
    kept = {names.get_name(name, (".weight", ".bias")) for name in model.state_dict()}
    return [name for name in tensors if name not in kept]


def _reader(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
