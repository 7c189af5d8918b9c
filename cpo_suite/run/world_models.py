"""Pretrain the base models of the embedded world, which come with the package.

`python -m cpo_suite.run.world_models` writes `cpo_suite/world/models/`: weights in half precision,
tokenizer, training curve and card. Maximum likelihood on training texts alone; no prompt, judge or
oracle has a part in it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from cpo.engine.files import write_atomically
from cpo.models.folders import load_model
from cpo_suite import world
from cpo_suite.artifacts import BaseModel
from cpo_suite.paper import ModelName
from cpo_suite.profile import Pretraining
from cpo_suite.suite import Suite

FOLDER = Path(world.__file__).parent / "models"
CURVE = 20  # steps averaged for a line of the curve

_LLAMA: dict[str, str | int | float | bool] = {
    "model_type": "llama",
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
    "initializer_range": 0.08,
}
CONFIGS: dict[ModelName, dict[str, str | int | float | bool]] = {
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 128,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.08,
    },
    "llama": _LLAMA
    | {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 344,
    },
    # Two fifths of the size, for the claim that the gain grows with the model.
    "llama_small": _LLAMA
    | {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 258,
    },
}
PRETRAINING = Pretraining(
    steps=2000,
    batch=32,
    block_tokens=128,
    learning_rate=4e-3,
    warmup_steps=50,
    vocabulary=2048,
    instructions=True,
)


def pretrain(name: ModelName, suite: Suite, folder: Path) -> None:
    """Pretrain a base model on the suite's texts and write it, with its card, to `folder`."""
    corpora = suite.corpora
    artifact = BaseModel(
        config=CONFIGS[name],
        texts=corpora.texts_hash(PRETRAINING.instructions),
        seed=0,
        name=name,
        corpora=corpora,
        **dict(PRETRAINING),
        **dict(suite.profile.optimiser),
    )
    built = suite.store.get(artifact)
    shutil.rmtree(folder, ignore_errors=True)
    load_model(built).half().save_pretrained(folder)
    for path in built.glob("tokenizer*"):
        shutil.copy(path, folder)
    lines = (built / "history.jsonl").read_text("utf-8").splitlines()
    curve = _curve([json.loads(line) for line in lines])
    write_atomically(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in curve))
    write_atomically(folder / "README.md", card(name, suite, curve))


def _curve(history: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """The training loss in nats per token, averaged over `CURVE` steps."""
    parts = [history[start : start + CURVE] for start in range(0, len(history), CURVE)]
    return [
        {"step": part[-1]["step"], "loss": round(sum(x["loss"] for x in part) / len(part), 4)}
        for part in parts
    ]


def card(name: ModelName, suite: Suite, curve: Sequence[dict[str, float]]) -> str:
    """The model's card: data, settings, curve, and the hash of the world."""
    made = world.build_world(0)
    settings, config = PRETRAINING, ", ".join(f"{k} {v}" for k, v in CONFIGS[name].items())
    shown = curve[:: max(1, len(curve) // 6)]
    losses = "\n".join(f"| {line['step']} | {line['loss']:.3f} |" for line in shown)
    texts = suite.corpora.texts(instructions=True)
    return f"""# {name}: a base model of the embedded world

Pretrained by maximum likelihood alone, made by `python -m cpo_suite.run.world_models {name}`.

* Data: {len(texts):,} training texts, articles and pairs. No validation or test text.
* World: version {world.WORLD_VERSION}, seed {made.seed}, content hash
  `{made.content_hash}`
* Model: {config}. Weights are stored in half precision.
* Training: {settings.steps:,} steps of {settings.batch} blocks of {settings.block_tokens} tokens.
* Optimiser: AdamW, rate {settings.learning_rate:g} with {settings.warmup_steps} warm-up steps and
  a cosine decay, {suite.profile.optimiser.precision}.
* Vocabulary: at most {settings.vocabulary:,} entries, byte-level BPE.

Training loss in nats per token, means over {CURVE} steps (all of them: `history.jsonl`):

| step | loss |
| ---: | ---: |
{losses}

Texts and models are invented; licence as for the project, Apache-2.0.
"""


def main(names: Sequence[str]) -> int:
    """Pretrain the named models, all by default; returns the exit code."""
    unknown = set(names) - set(get_args(ModelName))
    if unknown:
        print(f"no base model {', '.join(sorted(unknown))}: {', '.join(CONFIGS)}", file=sys.stderr)
        return 2
    suite = Suite.open("tiny")
    for name in cast(Sequence[ModelName], names or list(CONFIGS)):
        pretrain(name, suite, FOLDER / name)
        size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
        print(f"{FOLDER / name}: {size / 1e6:.1f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
