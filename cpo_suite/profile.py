"""Profiles: every setting of a run, in one strictly typed YAML file.

A profile is a frozen value. It trains the paper's rows (`cpo_suite.paper`), except those it
`leaves_out`, and custom rows. An unknown or misspelt key is an error that names the nearest valid
one; any key can be overridden with `dotted.key=value`. With `extends`, a profile states only what
differs from another, by its name or the path of its file.

A loaded `Profile` holds absolute paths; `cpo_suite.profile_files` says how they are found.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator, field_validator, model_validator

from cpo.data import ArticleColumn, PairColumn, Task
from cpo.evaluation.chat import secret_in
from cpo.evaluation.model_judges import MINIMUM_MASS
from cpo.negatives import MOST_SEQUENCES, SAMPLERS
from cpo.objectives import NEXT_TOKEN_OBJECTIVES, OBJECTIVES
from cpo.registry import nearest, unknown
from cpo_suite.paper import (
    COMPARISONS,
    ROWS,
    Comparison,
    ModelName,
    Objective,
    Row,
    Steps,
    distinct_models,
    rows_of,
)
from cpo_suite.profile_files import ROOT as ROOT
from cpo_suite.profile_files import UNSET, ProfileError, read_profile

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """Rejects a text for which `check` raises ValueError."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


def _without_secret(url: str) -> None:
    if secret := secret_in(url):
        raise ValueError(
            f"the address holds {secret}, and would be written into results: put the key into "
            "the environment variable that api_key_variable names"
        )


def _in_the_paper(name: str) -> None:
    if not rows_of(name):
        raise ValueError(unknown("row", name, ROWS))


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Instructions(_Settings):
    """Source of the prompt/response pairs, and their length limits in tokens.

    `columns` maps our names to those of a custom `jsonl` file, as in
    `{context: input, response: output}`.
    """

    source: Literal["world", "dolly", "jsonl"]
    path: str | None = None
    columns: dict[PairColumn, str] = {}
    train_rows: Count | None = None
    validation_rows: Count = 512
    test_prompts: Count = 1000
    max_prefix_tokens: int = Field(ge=8)
    max_continuation_tokens: int = Field(ge=2)
    over_long: Literal["drop", "refuse", "truncate"] = "drop"
    on_bad_row: Literal["drop", "refuse"] = "drop"


class Articles(_Settings):
    """Source of the articles, for pretraining and for open-ended generation.

    An article is truncated to `max_tokens`; its first 15 % are the prefix (section 5.2).
    `columns` maps our names to those of a custom `jsonl` file.
    """

    source: Literal["world", "wikipedia", "jsonl"]
    path: str | None = None
    columns: dict[ArticleColumn, str] = {}
    validation_articles: Count = 64
    test_articles: Count = 1000
    max_tokens: int = Field(128, ge=16)


class Pretraining(_Settings):
    """Pretraining of a base model: a tokenizer, and `steps` on packed articles.

    `instructions` adds the text of the training pairs, so that a model of a million parameters sees
    the vocabulary of the prompts.
    """

    steps: Count
    batch: Count
    block_tokens: int = Field(ge=8)
    learning_rate: Positive
    warmup_steps: int = Field(0, ge=0)
    vocabulary: int = Field(ge=258)
    instructions: bool = False


class ModelSettings(_Settings):
    """A base model: a folder, .gguf file or hub name (`pretrained`), or a `config` to pretrain.

    Parameters, width, layers and speeds only enter cost estimates. Speeds are those of one process
    on the profile's hardware.
    """

    paper_name: str
    parameters: Positive
    training_tokens_per_second: Positive
    generated_tokens_per_second: Positive
    width: Count | None = None
    layers: Count | None = None
    pretrained: str | None = None
    config: dict[str, str | int | float | bool] | None = None
    pretraining: Pretraining | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Width and layers, as set or as in `config`; 0 where unknown."""
        config = self.config or {}
        width = self.width or config.get("hidden_size") or config.get("n_embd") or 0
        layers = self.layers or config.get("num_hidden_layers") or config.get("n_layer") or 0
        return int(width), int(layers)

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSettings:
        parts = (self.pretrained is not None, self.config is not None, self.pretraining is not None)
        if parts not in ((True, False, False), (False, True, True)):
            raise ValueError("give either `pretrained` or `config` with `pretraining`")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs a `model_type`, such as gpt2 or llama")
        return self


class Optimiser(_Settings):
    """AdamW at a constant rate (section 4: weight decay 0.05); `clip` bounds the gradient norm.

    The precision `auto` is the faster one as measured on this machine (`cpo.engine.precision`).
    """

    weight_decay: NotNegative = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: Positive = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch_tokens: int = Field(32_768, ge=64)
    checkpoint_minutes: Positive = 10.0


class Processes(_Settings):
    """Processes that train, sample and score together, each with the model on its own device.

    `count` is the total over all `machines`. `options` are further arguments of `accelerate
    launch`; `before` is a command put in front of it, such as `srun`. A training's weights,
    gradients and moments are divided among the processes `always`, `never`, or by `auto` if a whole
    copy does not fit into `gpu_memory_gb`. None of these changes results, except those of PSS,
    whose samples each process draws for its own share.
    """

    count: Count = 1
    machines: Count = 1
    options: list[str] = []
    before: list[str] = []
    divide: Literal["auto", "never", "always"] = "auto"

    @model_validator(mode="after")
    def _can_divide(self) -> Processes:
        if self.divide == "always" and self.count == 1:
            raise ValueError("divide=always needs several processes: raise count, or leave `auto`")
        return self

    @property
    def on_each_machine(self) -> int:
        """Processes per machine."""
        return max(1, self.count // self.machines)


class Stage(_Settings):
    """One training stage: `steps` global batches of `batch` examples.

    The paper's rate is constant; a reference trained from scratch needs a cosine decay.
    `held_out_every` steps the loss on the validation rows is measured, and the stage ends once it
    has risen; 0 for never.
    """

    steps: Count
    batch: Count
    learning_rate: Positive
    schedule: Literal["constant", "cosine"] = "constant"
    held_out_every: int = Field(0, ge=0)


class ScheduledSampling(_Settings):
    """PSS: the probability of replacing a token by a sampled one, and the number of passes."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    passes: Count = 3


class Continuation(_Settings):
    """The continued MLE and CPO rows, trained on the same schedule from the same reference.

    `batch` is the global batch, from which BN are drawn. A schedule goes over its prompts, and the
    negatives drawn for them once, in `passes` passes. By default DPO uses CPO's beta and rate, and
    PSS the rate of MLE. Contrastive objectives are also measured on negatives of
    `held_out_batches` batches of validation prompts, 0 for none.
    """

    batch: int = Field(ge=2)
    steps: dict[Steps, Count]
    passes: Count = 1
    beta: Positive
    dpo_beta: Positive | None = None
    learning_rate: dict[Literal["mle", "cpo", "pss", "dpo"], Positive]
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    held_out_batches: int = Field(4, ge=0)
    scheduled_sampling: ScheduledSampling = ScheduledSampling()

    def steps_per_pass(self, steps: Steps) -> int:
        """The steps of a schedule's first pass, which sees each of its prompts."""
        return -(-self.steps[steps] // self.passes)

    def rate_of(self, objective: Objective) -> float:
        """The learning rate of an objective."""
        rates: dict[Any, float] = {"pss": self.learning_rate["mle"], **self.learning_rate}
        return rates.get(objective, rates["cpo"])

    def beta_of(self, objective: Objective) -> float:
        """The reward scale of an objective; 0 for next-token objectives."""
        without = dict.fromkeys(NEXT_TOKEN_OBJECTIVES, 0.0)
        return {**without, "dpo": self.dpo_beta or self.beta}.get(objective, self.beta)


class Server(_Settings):
    """A chat model behind an OpenAI-compatible server, and its cost limits.

    `parameters` are sent unchanged. Prices are in USD per million tokens. A run whose estimate
    exceeds `max_usd` or `max_requests` stops before it sends anything.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may contain a key

    model: str
    base_url: Annotated[str, _checked(_without_secret)] = "https://api.openai.com/v1"
    api_key_variable: str = "OPENAI_API_KEY"
    parameters: dict[str, float | int | str] = {}
    concurrency: Count = 8
    max_requests: Count = 10_000
    timeout: Positive = 60.0
    usd_per_million_input: NotNegative = 0.0
    usd_per_million_output: NotNegative = 0.0
    max_usd: NotNegative | None = None


class UnhelpfulSettings(_Settings):
    """The writer of DPO's rejected responses.

    A chat model as in the paper (A.4), the embedded world's writer, or a stand-in for real data:
    the response to another prompt.
    """

    writer: Literal["chat", "world", "other_response"] = "other_response"
    server: Server | None = None

    @model_validator(mode="after")
    def _complete(self) -> UnhelpfulSettings:
        if self.writer == "chat" and self.server is None:
            raise ValueError("the writer `chat` needs `server: {model: ...}`")
        return self


class Decoding(_Settings):
    """Arguments of `generate`; greedy by default."""

    do_sample: bool = False
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1


SAMPLING = Decoding(do_sample=True)  # from the model itself: temperature 1, nothing cut off


class JudgeSettings(_Settings):
    """The judge that compares a response with the recorded one.

    `none` leaves win rates empty; `openai` is a chat model behind a `server`; `local` is a causal
    language model, with `model` its folder or hub name. Any other kind is a registered rule: the
    embedded world's `oracle`, or the controls `longest` and `random`. `orders: 2` judges each pair
    in both orders. `minimum_mass` is the probability of "A" and "B" together that a local model's
    verdict needs, and `precision` that of its forward pass: named and never `auto`, since verdicts
    should not depend on the machine. `corrected` adds win rates corrected for the judge's errors to
    `verdicts.csv`, where its agreement with people was measured (`judge-quality`).
    """

    kind: str
    server: Server | None = None
    model: str | None = None
    batch: Count = 16
    orders: Literal[1, 2] = 1
    minimum_mass: float = Field(MINIMUM_MASS, ge=0, le=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    corrected: bool = False

    @property
    def label(self) -> str:
        """The judge's name in tables."""
        if self.server is not None and self.kind == "openai":
            return self.server.model
        if self.kind == "local" and self.model is not None:
            name = Path(self.model).name if os.path.isabs(self.model) else self.model
            return f"the local model {name}"
        return self.kind

    @property
    def paid(self) -> bool:
        """Whether verdicts come from a server."""
        return self.kind == "openai"

    @model_validator(mode="after")
    def _complete(self) -> JudgeSettings:
        if self.kind == "openai" and self.server is None:
            raise ValueError("the judge `openai` needs `server: {model: ...}`")
        if self.kind == "local" and self.model is None:
            raise ValueError("the judge `local` needs `model`: a model's folder or hub name")
        return self


class Mauve(_Settings):
    """MAUVE settings: features, tasks and clustering seeds.

    Features come from the base model, never from the encoder that ranks negatives.
    """

    features: Literal["base_model", "none"] = "none"
    tasks: tuple[Task, ...] = ("instructions", "articles")
    seeds: Count = 3
    max_text_tokens: int = Field(64, ge=4)


PaperRows = Annotated[str, _checked(_in_the_paper)]
Claim = Annotated[str, _checked(Comparison.parse)]


class Profile(_Settings):
    """All settings of a run; the YAML files in `profiles/` explain each."""

    name: str
    description: str
    hardware: str
    minutes: Positive
    memory_gb: Positive
    disk_gb: Positive
    gpus: int = Field(0, ge=0)
    gpu_memory_gb: Positive | None = None  # per GPU, for estimates; 10**9 bytes
    committed: bool = True
    seeds: Count = 1
    instructions: Instructions
    articles: Articles
    models: dict[ModelName, ModelSettings]
    optimiser: Optimiser
    processes: Processes = Processes(count=1)
    reference: Stage
    ablation_reference: Stage
    articles_reference: Stage
    continuation: Continuation
    negatives: dict[str, dict[Annotated[str, _checked(SAMPLERS.check)], Count]]
    unhelpful: UnhelpfulSettings = UnhelpfulSettings()
    embedded_texts_per_second: Positive = 430.0  # per process, for estimates
    decoding: dict[str, Decoding]
    judge: JudgeSettings
    mauve: Mauve
    generation_batch: Count = 128
    # The batch on which notebook 03 compares the kinds of negatives by their gradients.
    gradient_prompts: int = Field(512, ge=8)
    # Responses sampled for each prompt (temperature 1), measured beside the decoded one.
    sampling_seeds: int = Field(0, ge=0)
    # Rows of the paper, by id or prefix of ids, such as `t3` and `x/small`.
    leaves_out: tuple[PaperRows, ...] = ()
    # Custom rows by id; a notebook adds them with `Suite.add_row`.
    own_rows: dict[str, Row] = {}
    # Rows that are trained; by default all of both, except those left out, and except `x/mode`
    # where the profile has none of the mixtures that are theirs alone.
    rows: tuple[str, ...] = Field(None, validate_default=True, strict=False)
    # Comparisons that replace the paper's for a claim; see `cpo_suite.report.claims`.
    claims: dict[Annotated[int, Field(ge=1, le=len(COMPARISONS))], tuple[Claim, ...]] = Field(
        {}, validate_default=True
    )

    @field_validator("own_rows")
    @classmethod
    def _can_be_trained(cls, rows: dict[str, Row]) -> dict[str, Row]:
        for row_id, row in rows.items():
            if row_id != row.id or not row_id.startswith("own/"):
                raise ValueError(f"'{row_id}' is not the id of a custom row, such as own/NAME")
            if row.alpha is not None:
                raise ValueError(f"{row_id} is an ensemble; use `cpo.ensembling` to mix two models")
            OBJECTIVES.check(row.objective)
            _check_fields(row)
            if (row.negatives is None) == (row.objective in OBJECTIVES):
                needs = "needs" if row.negatives is None else "does not use"
                raise ValueError(f"{row_id}: the objective {row.objective} {needs} negatives")
        return rows

    @field_validator("rows", mode="before")
    @classmethod
    def _all_that_stay(cls, rows: Any, settings: ValidationInfo) -> Any:
        if rows is not None:
            return rows
        left_out = {row.id for name in settings.data.get("leaves_out", ()) for row in rows_of(name)}
        others = {row.negatives for row in ROWS.values() if row.table != "mode"}
        mode = [row for row in ROWS.values() if row.table == "mode"]
        if (
            settings.data.get("negatives", {})
            .keys()
            .isdisjoint({r.negatives for r in mode} - others)
        ):
            left_out |= {row.id for row in mode}  # the rest of them is of no use alone
        return (*(row for row in ROWS if row not in left_out), *settings.data.get("own_rows", ()))

    @field_validator("claims")
    @classmethod
    def _with_the_papers(cls, claims: dict[int, tuple[str, ...]]) -> dict[int, tuple[str, ...]]:
        return COMPARISONS | claims

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        for row_id in self.rows:
            if row_id not in self.every_row:
                raise ValueError(f"rows: {unknown('row', row_id, self.every_row)}")
            row = self.every_row[row_id]
            for group, name, settings in (
                ("models", row.model, self.models),
                ("negatives", row.negatives, self.negatives),
                ("continuation.steps", row.steps, self.continuation.steps),
                ("decoding", row.decoding, self.decoding),
                ("decoding", "greedy", self.decoding),  # for references
            ):
                if name is not None and name not in settings:
                    hint = nearest(name, settings)
                    raise ValueError(
                        f"rows: {row_id} needs {group}.{name}, which is missing.{hint}"
                    )
        for stage in ("reference", "ablation_reference", "articles_reference", "continuation"):
            batch = getattr(self, stage).batch
            if batch % self.processes.count:
                raise ValueError(
                    f"{stage}.batch: {batch} examples cannot be divided evenly among "
                    f"{self.processes.count} processes: change either number"
                )
        for objective in ("mle", "cpo"):
            if objective not in self.continuation.learning_rate:
                raise ValueError(f"continuation.learning_rate: `{objective}` is missing")
        for row in self.trained_rows:
            self._check_redraw(row)
        if self.instructions.source != "world":
            for row in self.trained_rows:
                if row.ranking == "oracle":
                    raise ValueError(
                        f"rows: {row.id} is ranked by the oracle, which knows the embedded world "
                        "alone: add it to leaves_out"
                    )
        others = self.continuation.batch - 1
        for name, mixture in self.negatives.items():
            if (count := mixture.get("BN", 0)) > others:
                raise ValueError(
                    f"negatives.{name}: {count} BN cannot be drawn from the {others} other rows of "
                    "a global batch: raise continuation.batch or lower the count"
                )
            for kind, most in MOST_SEQUENCES.items():
                if (count := mixture.get(kind, 0)) > most:
                    raise ValueError(f"negatives.{name}: {count} {kind}, but decoding gives {most}")
        return self

    def _check_redraw(self, row: Row) -> None:
        """Negatives are drawn anew after equal pieces of a pass over the prompts, or of passes."""
        if not row.redraw:
            return
        if row.negatives is None:
            raise ValueError(f"rows: {row.id} redraws negatives, but trains without any")
        settings = self.continuation
        steps, of_a_pass = settings.steps[row.steps], settings.steps_per_pass(row.steps)
        fits = 0 < row.redraw < steps and 0 in (of_a_pass % row.redraw, row.redraw % of_a_pass)
        if not fits or steps % row.redraw:
            raise ValueError(
                f"rows: {row.id} redraws every {row.redraw} steps, which does not divide its "
                f"{steps} steps, {of_a_pass} a pass over the prompts, into several equal pieces"
            )

    @property
    def every_row(self) -> dict[str, Row]:
        """The paper's rows and custom rows, by id; `rows` lists those that are trained."""
        return ROWS | self.own_rows

    @property
    def trained_rows(self) -> list[Row]:
        """The rows that are trained, in the paper's order, then custom rows."""
        return [row for row in self.every_row.values() if row.id in self.rows]

    @property
    def samplings(self) -> list[str]:
        """Decoding methods `sampling/SEED`: from the model itself, once for each sampling seed."""
        return [f"sampling/{seed}" for seed in range(self.sampling_seeds)]

    @property
    def sampled_rows(self) -> list[Row]:
        """Rows whose responses are sampled, too: every distinct model on instructions."""
        return distinct_models(row for row in self.trained_rows if row.task == "instructions")

    def decoding_of(self, name: str, seed: int) -> tuple[Decoding, int]:
        """A decoding method of the profile with its `seed`, or sampling with a seed of its own."""
        method, _, sampling_seed = name.partition("/")
        return (SAMPLING, int(sampling_seed)) if sampling_seed else (self.decoding[method], seed)

    def with_row(self, row: Row, mixture: Mapping[str, int] | None = None) -> Profile:
        """This profile with a custom row, which replaces any row of the same id.

        Args:
            row: its id begins with `own/`, so that it is in no table of the paper.
            mixture: stored under the row's id, such as `{"TN": 4}`; if None, `row.negatives` names
                a mixture of the profile.

        Raises:
            ProfileError: the row is not valid; the message says why.
        """
        mixtures = {} if mixture is None else {row.id: dict(mixture)}
        changed = {
            "own_rows": self.own_rows | {row.id: row},
            "rows": tuple(dict.fromkeys((*self.rows, row.id))),
            "negatives": self.negatives | mixtures,
        }
        return _validated(self.model_copy(update=changed).model_dump_json(), row.id)


def _check_fields(row: Row) -> None:
    """Refuse values of a custom row that are out of range, contradict each other, or do nothing.

    Raises:
        ValueError: the message names the row and the field.
    """
    for name in ("beta", "learning_rate"):
        if (value := getattr(row, name)) is not None and not value > 0:
            raise ValueError(f"{row.id}: {name} is {value:g}, and must be positive")
    if not 0 < row.keep <= 1:
        raise ValueError(f"{row.id}: keep is {row.keep:g}, and must be in (0, 1]")
    if row.negatives is None and (row.beta is not None or row.keep < 1):
        raise ValueError(f"{row.id}: beta and keep are for rows with negatives")
    if row.keep_nearest and row.keep == 1:
        raise ValueError(f"{row.id}: keep_nearest needs a keep below 1")
    if not row.redraw and (row.moving_reference or row.redraw_from != "policy"):
        raise ValueError(f"{row.id}: moving_reference and redraw_from need a redraw")
    if row.moving_reference and row.redraw_from == "reference":
        raise ValueError(f"{row.id}: the reference either moves or is drawn from again, not both")


def load_profile(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile by name (`tiny`) or from a YAML file, with `dotted.key=value` overrides.

    Paths become absolute: those of the file are resolved beside it, in CPO_DATA or in `profiles/`,
    those of overrides in the current folder; `missing_paths` lists those that do not exist. A model
    is a path if that file or folder exists, if it begins with `./`, `../`, `~` or `/`, or if it
    ends in `.gguf`. Otherwise it is a hub name.

    Raises:
        ProfileError: an unknown profile or key, or a wrong type; the message names the nearest
            valid key.
    """
    raw, _ = read_profile(name_or_path, overrides)
    return _validated(json.dumps(raw), Path(name_or_path).name)


def missing_paths(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Missing files and folders of a profile: by key, a message with the places searched.

    Raises:
        ProfileError: the profile does not exist or cannot be read.
    """
    _, missing = read_profile(name_or_path, overrides)
    command = f"`CPO_DATA=/path ./run_all.sh --profile {name_or_path}`"
    hint = f". CPO_DATA, the data folder, is not set: {command}"
    return {key: text + (hint if UNSET in text else "") for key, text in missing.items()}


# --- Validation -----------------------------------------------------------------------------------


def _validated(text: str, source: str) -> Profile:
    """Validate JSON text: strict about types, but lists are accepted as tuples."""
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(map(_explain, error.errors()))
        raise ProfileError(f"{source}: {problems}") from None


def _explain(problem: Any) -> str:
    """The error message: the key, the problem, and the nearest valid key."""
    keys = [str(part) for part in problem["loc"] if part != "[key]"]
    dotted, message = ".".join(keys), problem["msg"].removeprefix("Value error, ")
    match problem:
        case {"type": "missing"}:
            return f"key '{dotted}' is missing"
        case {"type": "extra_forbidden"}:
            choices = _keys_at(keys[:-1])
        case {"type": "literal_error", "loc": (*_, "[key]")}:
            choices = re.findall(r"'([^']*)'", message)
        case _:
            return f"{dotted}: {message}" if dotted else message
    return f"unknown key '{dotted}'.{nearest(keys[-1], choices)}"


def _keys_at(keys: Sequence[str]) -> list[str]:
    """The valid keys of the group of settings at `keys`."""
    group: Any = Profile
    for key in keys:
        annotation = group.model_fields[key].annotation if key in group.model_fields else group
        inner = [annotation, *get_args(annotation)]  # of `Server | None`, `dict[str, Row]`
        group = next((part for part in inner if hasattr(part, "model_fields")), group)
    return list(group.model_fields)
