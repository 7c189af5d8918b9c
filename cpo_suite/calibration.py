"""Throughput of this machine with a profile's models, measured once with random weights.

We time the suite's own code on shapes like the profile's: a few steps of each kind of training, a
scoring pass, two decoding methods, and the ranking encoder. Where nothing can be measured, the
speeds stated in the profile are used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cpo.engine import machine
from cpo.generation import generate
from cpo.models.gguf import gguf_file, location
from cpo.ranking import embed_texts, embedder_name, minilm
from cpo.scoring import Group, GroupScorer, collate_groups
from cpo.training import WATCHERS, TrainingExample, TrainingSettings, train
from cpo_suite.corpora import Corpora
from cpo_suite.estimate import CHARACTERS_A_TOKEN, Speeds
from cpo_suite.paper import ModelName
from cpo_suite.profile import ModelSettings, Profile

VERSION = 6  # raised when the measurement changes
LARGEST = 3e8  # parameters; measuring a larger model takes too long
SMALL = 2e7  # parameters
# Tokens of a timed step or scoring pass: of a small model, and of a larger one, which needs fewer.
# Larger batches are cut. Few rows of any length are mostly padding, unlike a batch sorted by
# length; a larger model is therefore timed on rows of nearly one length, the mean.
LARGEST_STEP, LARGEST_STEP_OF_LARGE = 4096, 512
# Tokens that a batch decodes per token of its responses: it goes on until the longest one ends.
# Measured over the responses of `tiny`: our own decoding, and transformers' `generate`.
WAITING, WAITING_OF_GENERATE = 1.5, 2.4
STEPS = 4  # per kind of training: the first warms up, the median of the rest counts
DECODED_ROWS, DECODED_STEPS = 128, 8
# Of a larger model: its batch matters more, and a pass over long prompts takes too long.
DECODED_ROWS_OF_LARGE, PROMPT_OF_LARGE = 384, 8
GENERATED_ROWS = 64  # by `generate`, with two beams each
TEXTS = 96  # for the encoder
BLOCK = 128  # tokens, where no model is pretrained
END = 0  # EOS id, which occurs in no prompt


def measurable(profile: Profile, model: ModelSettings) -> bool:
    """Whether a model's speeds are measured here.

    They are if its configuration is known without a download, it is small, and this machine has the
    GPU the profile needs.
    """
    place = Path(model.pretrained or "")
    known = model.config is not None or gguf_file(place) or (place / "config.json").is_file()
    return bool(known) and model.parameters <= LARGEST and not _elsewhere(profile)


def speeds(profile: Profile, corpora: Corpora, root: Path, name: ModelName) -> Speeds:
    """Speeds of one process with a model: measured here and cached under `root`, or as stated in
    the profile where the model is not `measurable`."""
    model = profile.models[name]
    if not measurable(profile, model):
        return Speeds.stated(model)
    shapes = _Shapes.of(profile, corpora)
    parts = [VERSION, _configuration(model).to_dict(), dataclasses.asdict(shapes)]
    parts.append(_threads(profile))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    measured = _remembered(
        profile,
        root,
        f"speeds {digest[:16]}",
        lambda: dataclasses.asdict(_measure(model, shapes)),
    )
    return Speeds(**measured)


def embedded_texts_per_second(profile: Profile, corpora: Corpora, root: Path) -> float:
    """Texts that one process embeds per second: measured, or as stated in the profile where this
    machine lacks its GPU."""
    if _elsewhere(profile):
        return profile.embedded_texts_per_second
    characters = sorted(corpora.lengths[1])
    median, precision = characters[len(characters) // 2], profile.optimiser.precision
    encoder = f"{embedder_name()}, {precision}, {_threads(profile)} threads"
    key = f"texts a second, {median} characters, {encoder}"
    return float(_remembered(profile, root, key, lambda: _embedding(median, precision)))


def _elsewhere(profile: Profile) -> bool:
    return profile.gpus > 0 and machine.device() == "cpu"


def _threads(profile: Profile) -> int:
    """Threads of each of the profile's processes on this machine."""
    return max(1, machine.threads() // profile.processes.on_each_machine)


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """What speeds depend on besides the model: precision and sequence lengths in tokens."""

    precision: str
    prefixes: list[int]
    continuations: list[int]
    k: int  # candidates per contrastive row
    pairs: int  # rows per global batch of MLE
    contrasts: int  # the same for CPO
    block: int
    decoded: int  # prompts decoded together

    @classmethod
    def of(cls, profile: Profile, corpora: Corpora) -> _Shapes:
        limits = profile.instructions
        mixtures = [
            profile.negatives[row.negatives] for row in profile.trained_rows if row.negatives
        ]
        pretrainings = [model.pretraining for model in profile.models.values()]
        blocks = [settings.block_tokens for settings in pretrainings if settings]

        def tokens(lengths: Sequence[int], limit: int) -> list[int]:
            counts = (round(length / CHARACTERS_A_TOKEN) for length in lengths)
            return [max(2, min(count, limit)) for count in counts]

        prefixes, continuations = corpora.lengths
        return cls(
            profile.optimiser.precision,
            tokens(prefixes, limits.max_prefix_tokens),
            tokens(continuations, limits.max_continuation_tokens),
            1 + max((sum(mixture.values()) for mixture in mixtures), default=1),
            profile.reference.batch,
            profile.continuation.batch,
            max(blocks, default=BLOCK),
            profile.generation_batch,
        )


def _remembered(profile: Profile, root: Path, key: str, measure: Callable[[], Any]) -> Any:
    """The cached result of `measure()`, run with the threads of one of the profile's processes.

    Global random generators and training watchers are restored afterwards.
    """

    def aside() -> Any:
        plain, of_numpy, watchers = random.getstate(), np.random.get_state(), list(WATCHERS)
        threads = torch.get_num_threads()
        torch.set_num_threads(_threads(profile))
        WATCHERS.clear()
        try:
            with torch.random.fork_rng():
                return measure()
        finally:
            torch.set_num_threads(threads)
            WATCHERS[:] = watchers
            random.setstate(plain)
            np.random.set_state(of_numpy)

    return machine.remembered(root, key, aside)


def _clock() -> float:
    """Seconds, after all queued GPU work is done."""
    if machine.device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _measure(model: ModelSettings, shapes: _Shapes) -> Speeds:
    """Time every kind of work with a randomly initialised model of this configuration."""
    network, vocabulary = _random_model(model)
    draw = random.Random(0)
    large = model.parameters > SMALL
    most = LARGEST_STEP_OF_LARGE if large else LARGEST_STEP

    def row(length: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(length)]

    lengths = list(zip(shapes.prefixes, shapes.continuations, strict=False))

    def batches(k: int, batch: int) -> list[list[Group]]:
        """A batch per step, each of different rows: CPU kernels prepare for every new matrix shape,
        and training constantly meets new shapes."""
        mean = sum(prefix + k * continuation for prefix, continuation in lengths) / len(lengths)
        count = max(1, min(batch, round(most / mean)))
        rows = draw.choices(lengths, k=STEPS * count)
        if large:
            by_length = sorted(lengths, key=lambda one: abs(one[0] + k * one[1] - mean))
            rows = list(islice(cycle(by_length), STEPS * count))
        groups = [Group(row(prefix), [row(length) for _ in range(k)]) for prefix, length in rows]
        return [groups[start : start + count] for start in range(0, len(groups), count)]

    def training(steps: list[list[Group]], objective: str, fp32_head: bool = True) -> float:
        return _step_seconds(network, steps, objective, fp32_head, shapes.precision)

    blocks = [row(shapes.block) for _ in range(max(1, most // 2 // shapes.block))]
    packed = [[Group(block[:1], [block[1:]]) for block in blocks]] * STEPS
    pairs, contrasts = batches(1, shapes.pairs), batches(shapes.k, shapes.contrasts)
    step = training([[Group(row(2), [row(2)])]] * STEPS, "mle")

    def rate(steps: list[list[Group]], seconds: float) -> float:
        return _timed_tokens(steps) / max(seconds - step, seconds / 4)

    scorer = GroupScorer(network, shapes.precision)
    scored = iter(contrasts[1:])

    def score() -> None:
        collated = collate_groups(next(scored), network.device)
        with torch.inference_mode():
            scorer(**collated).cpu()

    scoring = timeit.timeit(score, timer=_clock, number=STEPS - 1) / (STEPS - 1)
    kept, count = (PROMPT_OF_LARGE, DECODED_ROWS_OF_LARGE) if large else (None, DECODED_ROWS)
    drawn = [row(length)[:kept] for length in shapes.prefixes[:count]]
    prompts = list(islice(cycle(drawn), min(shapes.decoded, count)))
    return Speeds(
        training=rate(pairs, training(pairs, "mle")),
        packing=rate(packed, training(packed, "mle", fp32_head=False)),
        contrast=rate(contrasts, training(contrasts, "ranked_cpo")),
        scoring=_timed_tokens(contrasts) / scoring,
        decoding=_decoding(network, prompts, shapes.precision),
        generate=2 * _decoding(network, prompts[:GENERATED_ROWS], shapes.precision, num_beams=2),
        step=step,
    )


def _configuration(model: ModelSettings) -> Any:
    """The model's configuration, as the profile or its folder states it."""
    if model.pretrained is not None:
        folder, file = location(Path(model.pretrained))
        return AutoConfig.from_pretrained(folder, **file)
    assert model.config is not None and model.pretraining is not None
    config = {name: value for name, value in model.config.items() if name != "model_type"}
    vocabulary = model.pretraining.vocabulary
    return AutoConfig.for_model(str(model.config["model_type"]), **config, vocab_size=vocabulary)


def _random_model(model: ModelSettings) -> tuple[Any, int]:
    """A randomly initialised model of the configuration, and its vocabulary size."""
    kind = _configuration(model)
    for name in ("bos", "eos", "pad"):
        setattr(kind, f"{name}_token_id", END)
    network: Any = AutoModelForCausalLM.from_config(kind, dtype=torch.float32)
    return network.to(machine.device()).eval(), kind.get_text_config().vocab_size


def _step_seconds(
    network: Any, steps: list[list[Group]], objective: str, fp32_head: bool, precision: str
) -> float:
    """Median seconds per step of the suite's own training, the first step excluded."""
    k, batch = len(steps[0][0].continuations), len(steps[0])
    groups = [group for batch_groups in steps for group in batch_groups]
    examples = [TrainingExample(group, [True] * k, [0.0] * k) for group in groups]
    settings = TrainingSettings(
        objective,
        STEPS,
        batch,
        learning_rate=0.0,
        beta=1e-9,  # keeps rewards small: the reference values are dummies
        precision=precision,
        fp32_head=fp32_head,
        micro_batch=batch,
        description="timing this machine",
    )
    ends: list[float] = []

    def watch(*_: object) -> None:
        ends.append(_clock())

    WATCHERS.append(watch)
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "model")
            output.mkdir()
            train(network, examples, settings, output, Path(folder, "partial"))
    finally:
        WATCHERS.remove(watch)
    return statistics.median(end - begin for begin, end in zip(ends, ends[1:STEPS], strict=False))


def _decoding(network: Any, prompts: list[list[int]], precision: str, **decoding: Any) -> float:
    """Tokens of responses per second, excluding the pass over the prompts.

    What is timed has no EOS; in a batch of real responses most wait for the longest.
    """

    def decode(tokens: int) -> None:
        generate(
            network,
            prompts,
            eos_token_id=END,
            max_new_tokens=tokens,
            batch=len(prompts),
            precision=precision,
            description="timing this machine",
            **decoding,
        )

    decode(2)
    few, many = (_fastest(partial(decode, tokens)) for tokens in (2, 2 + DECODED_STEPS))
    waiting = WAITING_OF_GENERATE if decoding else WAITING
    return len(prompts) * DECODED_STEPS / (many - few) / waiting


def _embedding(characters: int, precision: str) -> float:
    """Texts of this length that the encoder embeds per second."""
    embed = minilm(precision)
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=4)) for _ in range(500)]
    texts = [" ".join(draw.choices(words, k=max(1, characters // 5))) for _ in range(TEXTS)]
    embed_texts(texts[:8], embed)
    return TEXTS / _fastest(lambda: embed_texts(texts, embed))


def _timed_tokens(steps: Sequence[Sequence[Group]]) -> float:
    """Mean tokens per step, the first step excluded as in the timing."""
    timed = [group for groups in steps[1:] for group in groups]
    tokens = sum(len(group.prefix_ids) + sum(map(len, group.continuations)) for group in timed)
    return tokens / (len(steps) - 1)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the faster of two runs."""
    return min(timeit.repeat(work, timer=_clock, repeat=2, number=1))
