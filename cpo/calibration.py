"""How fast this machine works with a profile's models: measured with random weights, once.

The suite's own code is timed on the shapes of the profile: a few steps of each kind of training, a
scoring pass, two kinds of decoding, and the encoder that ranks. Speeds in a profile are the
fallback.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpo import machine
from cpo.costs import CHARACTERS_A_TOKEN, GENERATE_SLOWDOWN, Speeds, decoded_here

if TYPE_CHECKING:
    from cpo.experiments import Suite
    from cpo.logprobs import Group
    from cpo.profiles import Model, Profile

VERSION = 1  # raised when what is measured changes
LARGEST = 2e7  # parameters of a model that is measured: a step of a larger one takes too long
STEPS = 3  # of each kind of training; the best counts, and the first one only warms up
DECODED = 20  # tokens for each prompt
GENERATED = 4  # the same by transformers' `generate`, which is several times slower
TEXTS = 256  # for the encoder
EOS = 0


def speeds(suite: Suite) -> dict[str, Speeds]:
    """The speeds of one process with each model of a profile, by the model's name.

    Measured here where the suite makes the model itself, it is small, and the profile is meant for
    a device like this one; else what the profile states.
    """
    profile = suite.profile
    return {
        name: _measured(suite, name) if measurable(profile, name) else Speeds.stated(model)
        for name, model in profile.models.items()
    }


def measurable(profile: Profile, name: str) -> bool:
    """Whether the speeds of a model are measured on this machine."""
    model = profile.models[name]  # type: ignore[index]
    elsewhere = profile.gpus > 0 and machine.device() == "cpu"
    return model.config is not None and model.parameters <= LARGEST and not elsewhere


def embedded_texts_per_second(suite: Suite) -> float:
    """How many texts one process embeds; what the profile states where it is for other machines."""
    profile = suite.profile
    if profile.gpus > 0 and machine.device() == "cpu":
        return profile.embedded_texts_per_second
    characters = sorted(suite.lengths[1])
    median = characters[len(characters) // 2]
    precision = profile.optimiser.precision
    key = f"embedded texts a second, {median} characters, {precision}"
    texts_per_second = machine.remembered(
        suite.store.root, key, lambda: _embedded(median, precision)
    )
    return float(texts_per_second) / _sharing(profile)


def _measured(suite: Suite, name: str) -> Speeds:
    profile = suite.profile
    model = profile.models[name]  # type: ignore[index]
    shapes = _Shapes.of(suite, name)
    what = [VERSION, model.config, model.pretraining and model.pretraining.vocabulary]
    text = json.dumps([*what, dataclasses.asdict(shapes)], sort_keys=True)
    key = f"speeds {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    found = machine.remembered(
        suite.store.root, key, lambda: dataclasses.asdict(_measure(model, shapes, name))
    )
    return Speeds(**found).shared(_sharing(profile))


def _sharing(profile: Profile) -> int:
    """How many processes share what was measured with all of it: a machine's cores."""
    return profile.processes.on_each_machine if machine.device() == "cpu" else 1


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """What the speeds depend on beside the model."""

    precision: str
    prefixes: list[int]  # tokens of each of a batch's rows
    continuations: list[int]
    batch: int  # of the reference
    contrast_batch: int
    k: int
    tokens_at_once: int
    block: tuple[int, int]
    decoded: int  # prompts together
    generates: bool  # by transformers' `generate`, too

    @classmethod
    def of(cls, suite: Suite, name: str) -> _Shapes:
        profile = suite.profile
        settings = profile.instructions
        prefixes, continuations = suite.lengths
        pretraining = next(one.pretraining for one in profile.models.values() if one.pretraining)
        rows = profile.trained_rows
        mixtures = [profile.negatives[row.negatives] for row in rows if row.negatives]
        decodings = {row.decoding for row in rows if row.model == name}

        def tokens(lengths: Sequence[int], limit: int) -> list[int]:
            count = max(profile.reference.batch, profile.continuation.batch)
            return [
                max(2, min(round(lengths[row % len(lengths)] / CHARACTERS_A_TOKEN), limit))
                for row in range(count)
            ]

        return cls(
            profile.optimiser.precision,
            tokens(prefixes, settings.max_prefix_tokens),
            tokens(continuations, settings.max_continuation_tokens),
            profile.reference.batch,
            profile.continuation.batch,
            1 + max((sum(mixture.values()) for mixture in mixtures), default=1),
            profile.optimiser.micro_batch_tokens,
            (pretraining.batch, pretraining.block_tokens),
            min(profile.generation_batch, settings.test_prompts),
            not all(decoded_here(profile.decoding[decoding]) for decoding in decodings),
        )


def _measure(model: Model, shapes: _Shapes, name: str) -> Speeds:
    """Time all kinds of work with a model of this configuration and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cpo.logprobs import Group, GroupScorer, collate_groups

    assert model.config is not None and model.pretraining is not None
    vocabulary = model.pretraining.vocabulary
    config = {key: value for key, value in model.config.items() if key != "model_type"}
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
    draw = random.Random(0)

    def row(length: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(length)]

    def groups(count: int, k: int) -> list[Group]:
        lengths = list(zip(shapes.prefixes, shapes.continuations, strict=True))[:count]
        return [Group(row(p), [row(c) for _ in range(k)]) for p, c in lengths]

    def rate(batch: list[Group], objective: str, fp32_head: bool = True) -> float:
        """Tokens a second of a training step, beyond what any step takes."""
        seconds = _step_seconds(network, shapes, name, batch, objective, fp32_head)
        return _tokens(batch) / max(seconds - step, seconds / 10)

    with _same_random_numbers_after():
        network: Any = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(
                str(model.config["model_type"]), **config, vocab_size=vocabulary, **ids
            ),
            dtype=torch.float32,
        ).to(machine.device())
        step = _step_seconds(network, shapes, name, [Group(row(2), [row(2)])], "mle")
        blocks, length = shapes.block
        packing = rate([Group(row(1), [row(length - 1)]) for _ in range(blocks)], "mle", False)
        training = rate(groups(shapes.batch, 1), "mle")
        contrasts = groups(shapes.contrast_batch, shapes.k)
        contrast = rate(contrasts, "ranked_cpo")
        scorer = GroupScorer(network, shapes.precision)
        batch = {key: part.to(network.device) for key, part in collate_groups(contrasts).items()}

        def score() -> None:
            with torch.inference_mode():
                scorer(**batch).cpu()

        scoring = _tokens(contrasts) / _best(score, STEPS)
        decoding = _decoding(network, shapes, row, DECODED)
        generate = decoding / GENERATE_SLOWDOWN
        if shapes.generates:
            generate = _decoding(network, shapes, row, GENERATED, do_sample=True, top_p=0.9)
    return Speeds(training, packing, contrast, scoring, decoding, generate, step)


def _step_seconds(
    network: Any,
    shapes: _Shapes,
    name: str,
    groups: list[Group],
    objective: str,
    fp32_head: bool = True,
) -> float:
    """The best of some steps on the same batch, through the trainer."""
    from cpo.training import TrainingExample, TrainingSettings, micro_batch, train

    longest = max(len(one.prefix_ids) + sum(map(len, one.continuations)) for one in groups)
    examples = [
        TrainingExample(one, [True] * len(one.continuations), [0.0] * len(one.continuations))
        for one in groups
    ]
    settings = TrainingSettings(
        objective,
        STEPS,
        len(groups),
        0.0,
        beta=1e-6,
        precision=shapes.precision,
        fp32_head=fp32_head,
        micro_batch=micro_batch(len(groups), longest, shapes.tokens_at_once),
        tokens_at_once=shapes.tokens_at_once,
        description=f"timing {name} on this machine",
    )
    with tempfile.TemporaryDirectory() as folder:
        output, partial = Path(folder, "output"), Path(folder, "partial")
        output.mkdir()
        history = train(network, examples * STEPS, settings, output, partial)
    return min(line["seconds"] for line in history)


def _decoding(
    network: Any,
    shapes: _Shapes,
    row: Callable[[int], list[int]],
    new_tokens: int,
    **options: Any,
) -> float:
    """Tokens a second of a batch that is decoded."""
    from cpo.generation import generate

    prefixes = [row(shapes.prefixes[i % len(shapes.prefixes)]) for i in range(shapes.decoded)]
    asked: dict[str, Any] = {"max_new_tokens": new_tokens, "batch": shapes.decoded, **options}
    asked |= {"precision": shapes.precision, "description": "timing the decoding"}
    speeds = []
    for _ in range(2):
        clock = time.perf_counter()
        drawn = generate(network, prefixes, eos_token_id=EOS, **asked)
        speeds.append(sum(len(ids) for (ids,) in drawn) / (time.perf_counter() - clock))
    return max(speeds)


def _embedded(characters: int, precision: str) -> float:
    from cpo.ranking import embed_texts, minilm

    embed = minilm(precision)
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=4)) for _ in range(500)]

    def texts() -> list[str]:
        return [" ".join(draw.choices(words, k=max(1, characters // 5))) for _ in range(TEXTS)]

    embed_texts(texts()[:16], embed)
    return TEXTS / _best(lambda: embed_texts(texts(), embed), 2)


def _tokens(groups: Sequence[Group]) -> int:
    return sum(len(one.prefix_ids) + sum(map(len, one.continuations)) for one in groups)


def _best(work: Callable[[], object], repetitions: int) -> float:
    """Seconds of the fastest of several repetitions."""
    seconds = []
    for _ in range(repetitions):
        clock = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - clock)
    return min(seconds)


@contextmanager
def _same_random_numbers_after() -> Iterator[None]:
    """Leave the global generators as they were: a measurement is not to change a notebook."""
    import numpy as np
    import torch

    plain, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(of_numpy)
