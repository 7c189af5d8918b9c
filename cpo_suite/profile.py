"""Profiles: every setting of a run, in one strictly typed YAML file.

A profile is a frozen value. An unknown or misspelt key is an error that names the key and the
nearest valid one; any key can be overridden with `dotted.key=value`. A path is relative to the
profile's file, in an override to the current folder, and absolute in a `Profile`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from cpo.data import ArticleColumn, PairColumn, Task
from cpo.evaluation.chat import secret_in
from cpo.negatives import SAMPLERS
from cpo.registry import nearest
from cpo.training import NEXT_TOKEN_OBJECTIVES, OBJECTIVES
from cpo_suite.comparison import Comparison
from cpo_suite.paper import ROWS, ModelName, Objective, Row, Steps

ROOT = Path(__file__).resolve().parent.parent


_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PATH = re.compile(r"^(\.{0,2}/|~)|\.gguf$")  # else a model may be a name of the hub


class ProfileError(ValueError):
    """A profile that cannot be used; the message says which key is wrong and what is valid."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Instructions(_Settings):
    """Where the prompt/response pairs come from and how long they may be, in tokens.

    `columns` are those of a file of one's own (`jsonl`) that have other names, as in
    `{context: input, response: output}`.
    """

    source: Literal["world", "dolly", "jsonl"]
    path: str | None = None
    columns: dict[PairColumn, str] = {}
    train_rows: int | None = Field(None, ge=1)
    validation_rows: int = Field(512, ge=1)
    test_prompts: int = Field(1000, ge=1)
    max_prefix_tokens: int = Field(ge=8)
    max_continuation_tokens: int = Field(ge=2)
    over_long: Literal["drop", "refuse", "truncate"] = "drop"
    on_bad_row: Literal["drop", "refuse"] = "drop"


class Articles(_Settings):
    """Where the articles come from that a base model is pretrained on and continues.

    An article is capped to `max_tokens`, of which the first 15 % are its prefix (section 5.2).
    `columns` are those of a file of one's own (`jsonl`) that have other names.
    """

    source: Literal["world", "wikipedia", "jsonl"]
    path: str | None = None
    columns: dict[ArticleColumn, str] = {}
    validation_articles: int = Field(64, ge=1)
    test_articles: int = Field(1000, ge=1)
    max_tokens: int = Field(128, ge=16)


class Pretraining(_Settings):
    """How the suite makes a base model itself: a tokenizer and `steps` of packed articles.

    `instructions` adds the training pairs' text to the articles, so that a model of a million
    parameters meets the words it will be asked about.
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    block_tokens: int = Field(ge=8)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    vocabulary: int = Field(ge=258)
    instructions: bool = False


class Model(_Settings):
    """A base model: a folder, .gguf file or hub name (`pretrained`), or a configuration the suite
    pretrains.

    The number of parameters, width and layers, and the speeds of one process, measured on the
    profile's hardware, are for the plan's estimates alone.
    """

    paper_name: str
    parameters: float = Field(gt=0)
    training_tokens_per_second: float = Field(gt=0)
    generated_tokens_per_second: float = Field(gt=0)
    width: int | None = Field(None, ge=1)
    layers: int | None = Field(None, ge=1)
    pretrained: str | None = None
    config: dict[str, str | int | float | bool] | None = None
    pretraining: Pretraining | None = None

    @property
    def size(self) -> int:
        """Width times layers, as given or by the configuration; 0 where neither says."""
        config = self.config or {}
        width = self.width or config.get("hidden_size") or config.get("n_embd") or 0
        layers = self.layers or config.get("num_hidden_layers") or config.get("n_layer") or 0
        return int(width) * int(layers)

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("give either `pretrained` or `config` with `pretraining`")
        if (self.config is None) != (self.pretraining is None):
            raise ValueError("`config` and `pretraining` go together")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs a `model_type`, such as gpt2 or llama")
        return self


class Optimiser(_Settings):
    """AdamW at a constant rate (section 4: weight decay 0.05); clip is the gradient-norm bound.

    The precision `auto` stands for the faster on this machine, as measured: `cpo.engine.precision`.
    """

    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch_tokens: int = Field(32_768, ge=64)
    checkpoint_minutes: float = Field(10.0, gt=0)


class Processes(_Settings):
    """How many processes train, sample and score together, each with the model on its own device.

    `options` are further arguments of `accelerate launch`, such as `--num_machines=2`; `before` is
    a command in front of it, such as `srun`. None of it changes what comes out, but for PSS, whose
    draws every process makes for its own share.
    """

    count: int = Field(1, ge=1)
    options: list[str] = []
    before: list[str] = []

    @model_validator(mode="after")
    def _machines_are_counted(self) -> Processes:
        for option in self.options:
            name, equals, number = option.partition("=")
            if name == "--num_machines" and not (equals and number.isdecimal() and int(number)):
                raise ValueError(
                    "processes.options: write `--num_machines=2`, one text with a whole number"
                )
        return self

    @property
    def on_each_machine(self) -> int:
        """How many of them each machine runs, by `--num_machines` among the options."""
        named = (one.partition("=") for one in self.options)
        machines = next((text for name, _, text in named if name == "--num_machines"), "1")
        return max(1, self.count // int(machines))


class Stage(_Settings):
    """One training stage: `steps` global batches of `batch` examples.

    The paper's rate is constant; a reference trained from scratch needs one that falls (cosine).
    """

    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "cosine"] = "constant"


class ScheduledSampling(_Settings):
    """PSS: with what probability a token is replaced by a sampled one, and in how many passes."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    passes: Annotated[int, Field(ge=1)] = 3


class Continuation(_Settings):
    """The continued MLE and CPO rows: the same plan of prompts, from the same reference.

    `batch` is the global batch; BN are drawn from it. DPO's beta is CPO's, and the rates of PSS and
    DPO are those of MLE and CPO, unless given.
    """

    batch: int = Field(ge=2)
    steps: dict[Steps, Annotated[int, Field(ge=1)]]
    beta: float = Field(gt=0)
    dpo_beta: float | None = Field(None, gt=0)
    learning_rate: dict[Literal["mle", "cpo", "pss", "dpo"], Annotated[float, Field(gt=0)]]
    scheduled_sampling: ScheduledSampling = ScheduledSampling()

    def rate_of(self, objective: Objective) -> float:
        """The learning rate of an objective."""
        rates = self.learning_rate
        if objective in ("mle", "pss"):
            return rates["mle"] if objective == "mle" else rates.get("pss", rates["mle"])
        return rates.get("dpo", rates["cpo"]) if objective == "dpo" else rates["cpo"]

    def beta_of(self, objective: Objective) -> float:
        """The scale of the rewards of an objective; 0 where it has none."""
        if objective in ("mle", "pss"):
            return 0.0
        return self.dpo_beta or self.beta if objective == "dpo" else self.beta


class Server(_Settings):
    """A chat model behind any server of OpenAI's chat completions, and what it may cost.

    `parameters` are sent as they are. Prices are in USD per million tokens; a run whose estimate is
    above `max_usd`, or that would send more than `max_requests`, is refused before it sends any.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a key

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_variable: str = "OPENAI_API_KEY"
    parameters: dict[str, float | int | str] = {}
    concurrency: int = Field(8, ge=1)
    max_requests: int = Field(10_000, ge=1)
    timeout: float = Field(60.0, gt=0)
    usd_per_million_input: float = Field(0.0, ge=0)
    usd_per_million_output: float = Field(0.0, ge=0)
    max_usd: float | None = Field(None, ge=0)

    @field_validator("base_url")
    @classmethod
    def _without_secret(cls, url: str) -> str:
        if secret := secret_in(url):
            raise ValueError(
                f"the address holds {secret}, and is written into results: put the key into the "
                "environment variable that api_key_variable names"
            )
        return url


class Unhelpful(_Settings):
    """Who writes DPO's rejected responses: a chat model as in the paper (A.4), the embedded world's
    own writer, or a stand-in for real data without either: the response to another prompt."""

    writer: Literal["chat", "world", "other_response"] = "other_response"
    server: Server | None = None

    @model_validator(mode="after")
    def _complete(self) -> Unhelpful:
        if self.writer == "chat" and self.server is None:
            raise ValueError("the writer `chat` needs `server: {model: ...}`")
        return self


class Decoding(_Settings):
    """Arguments of `generate`; greedy unless said."""

    do_sample: bool = False
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1


class Judge(_Settings):
    """Who compares a response with the recorded one.

    `none` leaves win rates empty; `openai` is a chat model behind a `server`; `local` a causal
    language model, `model` its folder or hub name; all else is a registered rule: `oracle`, which
    knows the embedded world, or the controls `longest` and `random`. `orders` is 2 to show each
    pair with the sides exchanged, too.
    """

    kind: str
    server: Server | None = None
    model: str | None = None
    batch: int = Field(16, ge=1)
    orders: Literal[1, 2] = 1

    @property
    def label(self) -> str:
        """Who judges, in words."""
        if self.server is not None and self.kind == "openai":
            return self.server.model
        if self.kind == "local" and self.model is not None:
            name = Path(self.model).name if os.path.isabs(self.model) else self.model
            return f"the local model {name}"
        return self.kind

    @property
    def paid(self) -> bool:
        """Whether every verdict is asked of a server."""
        return self.kind == "openai"

    @model_validator(mode="after")
    def _complete(self) -> Judge:
        if self.kind == "openai" and self.server is None:
            raise ValueError("the judge `openai` needs `server: {model: ...}`")
        if self.kind == "local" and self.model is None:
            raise ValueError("the judge `local` needs `model`: a model's folder or hub name")
        return self


class Mauve(_Settings):
    """MAUVE settings: what features, how many seeds of its clustering, and for which task.

    The features are the base model's, never those of the encoder that ranks negatives.
    """

    features: Literal["base_model", "none"] = "none"
    tasks: tuple[Task, ...] = ("instructions", "articles")
    seeds: int = Field(3, ge=1)
    max_text_tokens: int = Field(64, ge=4)


class Profile(_Settings):
    """All settings of a run; see the YAML files in `profiles/` for what each is for."""

    name: str
    description: str
    hardware: str
    minutes: float = Field(gt=0)
    memory_gb: float = Field(gt=0)
    disk_gb: float = Field(gt=0)
    gpus: int = Field(0, ge=0)
    gpu_memory_gb: float | None = Field(None, gt=0)  # of each, for the plan; 10**9 bytes
    usd: float = Field(0.0, ge=0)
    committed: bool = True
    seeds: int = Field(1, ge=1)
    instructions: Instructions
    articles: Articles
    models: dict[ModelName, Model]
    optimiser: Optimiser
    processes: Processes = Processes(count=1)
    reference: Stage
    ablation_reference: Stage
    articles_reference: Stage
    continuation: Continuation
    negatives: dict[str, dict[str, Annotated[int, Field(ge=1)]]]
    unhelpful: Unhelpful = Unhelpful()
    embedder: Literal["minilm"] = "minilm"
    embedded_texts_per_second: float = Field(430.0, gt=0)  # of one process; for the plan
    decoding: dict[str, Decoding]
    judge: Judge
    mauve: Mauve
    generation_batch: int = Field(128, ge=1)
    rows: tuple[str, ...]
    # Rows beside the paper's, by id; a notebook adds them with `Suite.add_row`.
    own_rows: dict[str, Row] = {}
    # The comparisons on which each of the paper's claims is judged; see `cpo_suite.report.claims`.
    claims: dict[Annotated[int, Field(ge=1, le=12)], tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if "greedy" not in self.decoding:
            raise ValueError("decoding: `greedy` is missing")
        for row_id, row in self.own_rows.items():
            _check_own_row(row_id, row)
        for row_id in self.rows:
            if row_id not in self.every_row:
                raise ValueError(f"rows: {_unknown('row', row_id, self.every_row)}")
            row = self.every_row[row_id]
            if row.model not in self.models:
                raise ValueError(f"rows: {row_id} needs models.{row.model}, which is missing")
            if row.negatives is not None and row.negatives not in self.negatives:
                raise ValueError(
                    f"rows: {row_id} needs negatives.{row.negatives}, which is missing"
                )
            if row.steps not in self.continuation.steps:
                raise ValueError(f"rows: {row_id} needs continuation.steps.{row.steps}")
            if row.decoding not in self.decoding:
                raise ValueError(f"rows: {row_id} needs decoding.{row.decoding}")
        for number, texts in self.claims.items():
            for text in texts:
                for row_id in Comparison.parse(text).rows:
                    if row_id not in ROWS:
                        raise ValueError(f"claims.{number}: {_unknown('row', row_id, ROWS)}")
        for stage in ("reference", "ablation_reference", "articles_reference", "continuation"):
            batch = getattr(self, stage).batch
            if batch % self.processes.count:
                raise ValueError(
                    f"{stage}.batch: {batch} examples cannot be shared out evenly among "
                    f"{self.processes.count} processes: change one of the two"
                )
        for which in ("mle", "cpo"):
            if which not in self.continuation.learning_rate:
                raise ValueError(f"continuation.learning_rate: `{which}` is missing")
        for name, mixture in self.negatives.items():
            for kind in mixture:
                if kind not in SAMPLERS:
                    raise ValueError(
                        f"negatives.{name}: {_unknown('kind', kind, sorted(SAMPLERS))}"
                    )
            others = self.continuation.batch - 1
            if mixture.get("BN", 0) > others:
                raise ValueError(
                    f"negatives.{name}: {mixture['BN']} BN cannot be drawn from the {others} other "
                    "rows of a global batch: raise continuation.batch or lower the count"
                )
        return self

    @property
    def paths(self) -> dict[str, str]:
        """The files and folders that it names, by key; names of the hub are none."""
        named = {
            "instructions.path": self.instructions.path,
            "articles.path": self.articles.path,
            "judge.model": self.judge.model if self.judge.kind == "local" else None,
        } | {f"models.{name}.pretrained": model.pretrained for name, model in self.models.items()}
        return {key: path for key, path in named.items() if path and os.path.isabs(path)}

    @property
    def every_row(self) -> dict[str, Row]:
        """The paper's rows and those of one's own, by id; which are trained, `rows` says."""
        return ROWS | self.own_rows

    @property
    def trained_rows(self) -> list[Row]:
        """The profile's rows, in the paper's order, those of one's own behind them."""
        return [row for row in self.every_row.values() if row.id in self.rows]

    def with_row(self, row: Row, mixture: Mapping[str, int] | None = None) -> Profile:
        """This profile with a row of one's own, in place of one of the same id.

        Args:
            row: its id begins with `own/`, so that it is in no table of the paper.
            mixture: its negatives, such as `{"TN": 4}`, kept under the row's id; without one
                `row.negatives` names a mixture of the profile.

        Raises:
            ProfileError: the row does not fit; the message says why.
        """
        if mixture is not None:
            row = dataclasses.replace(row, negatives=row.id)
        changed = {
            "own_rows": self.own_rows | {row.id: row},
            "rows": tuple(dict.fromkeys((*self.rows, row.id))),
            "negatives": self.negatives | ({row.id: dict(mixture)} if mixture is not None else {}),
        }
        raw = json.loads(self.model_copy(update=changed).model_dump_json())
        return _validate(raw, Path(row.id))


def _check_own_row(row_id: str, row: Row) -> None:
    """Raises `ValueError` for a row that is no row of one's own, or cannot be trained."""
    if row_id != row.id or not row_id.startswith("own/"):
        raise ValueError(f"own_rows: '{row_id}' is no id of a row of one's own, such as own/NAME")
    if row.alpha is not None:
        raise ValueError(
            f"own_rows: {row_id} is an ensemble; mix the two models with `cpo.ensembling` instead"
        )
    known = (*NEXT_TOKEN_OBJECTIVES, *sorted(OBJECTIVES))
    if row.objective not in known:
        raise ValueError(f"own_rows: {row_id}: {_unknown('objective', row.objective, known)}")
    if (row.negatives is None) == (row.objective in OBJECTIVES):
        needs = "needs negatives" if row.negatives is None else "has no use for negatives"
        raise ValueError(f"own_rows: {row_id}: the objective {row.objective} {needs}")


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def load_profile(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, substitute: bool = True
) -> Profile:
    """Read a profile by name (`tiny`) or from a YAML file, with `dotted.key=value` overrides.

    `${NAME}` in a value is replaced from the environment; with `substitute=False` it stays as
    written, so that a profile can be looked at where its data are not. Paths become absolute: those
    of the file are relative to its folder, those of overrides, and what a variable holds, to the
    current one. A model is a path where there is such a file or folder, or where it begins with
    `./`, `../`, `~` or `/` or ends in `.gguf`; else it is a name of the hub.

    Raises:
        ProfileError: naming the key and the nearest valid one, for an unknown profile or key, a
            wrong type, or unset environment variables.
    """
    path, raw = _read(name_or_path, overrides)
    if substitute:
        unset = missing_environment(name_or_path, overrides)
        if unset:
            raise ProfileError(
                f"profile '{path.stem}' needs the environment variable{'s' * (len(unset) > 1)} "
                f"{', '.join(unset)}, not set here. Set it, as in "
                f"`{unset[0]}=/path ./run_all.sh --profile {name_or_path}`."
            )
        raw = _map_strings(raw, _with_variables)
    return _validate(raw, path)


def named_environment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Environment variables that a profile names as `${NAME}`, in order of appearance."""
    raw = _read(name_or_path, overrides)[1]
    return list(dict.fromkeys(_VARIABLE.findall(json.dumps(raw, default=str, ensure_ascii=False))))


def missing_environment(name_or_path: str | Path, overrides: Sequence[str] = ()) -> list[str]:
    """Those of `named_environment` that are unset or empty."""
    return [name for name in named_environment(name_or_path, overrides) if not os.environ.get(name)]


def parse_value(text: str) -> Any:
    """A value as it would be read from a profile: `1e-5` a float, `true` a bool, `[a]` a list."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ProfileError(f"'{text}' is no YAML value: {' '.join(str(error).split())}") from None


def with_absolute_paths(override: str) -> str:
    """The override with its paths absolute, so that it means the same in every folder."""
    key = tuple(override.partition("=")[0].strip().split("."))
    return map_override(
        override, lambda value: _map_strings(value, _absolute_from(Path.cwd()), key)
    )


def map_override(override: str, change: Callable[[Any], Any]) -> str:
    """The override with its value changed; as it was written where that changes nothing."""
    key, _, text = override.partition("=")
    value = parse_value(text)
    changed = change(value)
    if changed == value:
        return override
    # In YAML, as a path may hold what has a meaning there; a scalar ends in a line of dots.
    text = yaml.safe_dump(changed, default_flow_style=True, allow_unicode=True, width=math.inf)
    text = text.removesuffix("...\n").strip()
    return f"{key}={text}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: plain YAML 1.1 reads `1e-5` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)
# Integers match that pattern too; resolvers are tried in order: the integer rule has to stay first.
for _resolvers in _Loader.yaml_implicit_resolvers.values():
    _resolvers.sort(key=lambda rule: rule[0] == "tag:yaml.org,2002:float")


def _unknown(what: str, word: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    return f"unknown {what} '{word}'.{nearest(word, choices)} Known: {', '.join(choices)}."


def _read(name_or_path: str | Path, overrides: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "profiles" / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ProfileError(_unknown("profile", str(name_or_path), profile_names()))
    elif not path.is_file():
        raise ProfileError(f"no profile file {path}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ProfileError(f"{path} must hold keys and values, not a {type(raw).__name__}")
    # A copy of its own for each place that a YAML alias stands in: an override changes one place.
    raw = _map_strings(raw, _absolute_from(path.parent.resolve()))
    for override in overrides:
        _apply_override(raw, override)
    return path, raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ProfileError(f"an override is dotted.key=value, not '{override}'")
    target = raw
    *parents, last = key.strip().split(".")
    for depth, parent in enumerate(parents, start=1):
        # A group that the file leaves out is begun here; validation names it if there is no such.
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            group = ".".join(parents[:depth])
            raise ProfileError(f"unknown key '{key}': '{group}' is one value, not a group of keys")
    absolute = _absolute_from(Path.cwd())
    target[last] = _map_strings(parse_value(text), absolute, (*parents, last))


def _map_strings(
    value: Any, change: Callable[[str, tuple[str, ...]], str], key: tuple[str, ...] = ()
) -> Any:
    """A copy of the value at a key in which `change(text, key)` stands for each text."""
    if isinstance(value, dict):
        return {
            name: _map_strings(item, change, (*key, str(name))) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_map_strings(item, change, key) for item in value]
    return change(value, key) if isinstance(value, str) else value


def _absolute_from(folder: Path) -> Callable[[str, tuple[str, ...]], str]:
    """What makes the text at a key absolute where it is a path, for `_map_strings`."""

    def absolute(text: str, key: tuple[str, ...]) -> str:
        is_data = key in (("instructions", "path"), ("articles", "path"))
        is_model = key == ("judge", "model") or (key[:1], key[2:]) == (("models",), ("pretrained",))
        if text.startswith("${") or not (is_data or is_model):
            return text
        path = os.path.abspath(folder / os.path.expanduser(text))
        exists = os.path.exists(os.path.expandvars(path))
        return path if is_data or _PATH.search(text) or exists else text

    return absolute


def _with_variables(text: str, key: tuple[str, ...]) -> str:
    """The text with `${NAME}` filled in; a path that begins with it is only now made absolute."""
    filled = _VARIABLE.sub(lambda match: os.environ[match[1]], text)
    return _absolute_from(Path.cwd())(filled, key) if text.startswith("${") else filled


def _validate(raw: dict[str, Any], path: Path) -> Profile:
    try:
        # Through JSON, so that strictness means types of values, not tuples against lists.
        return Profile.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        problems = [_explain(item) for item in error.errors()]
        raise ProfileError(f"{path.name}: " + "; ".join(problems)) from None


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"] if part != "[key]"]
    dotted = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'.{nearest(location[-1], _fields_at(location[:-1]))}"
    if problem["type"] == "literal_error" and problem["loc"][-1] == "[key]":
        choices = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        return f"unknown key '{dotted}'.{nearest(location[-1], choices)}"
    if problem["type"] == "missing":
        return f"key '{dotted}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message}" if dotted else message


def _fields_at(location: Sequence[str]) -> list[str]:
    """Valid keys of the settings found by walking `location` from the top of a profile."""
    settings: Any = Profile
    for part in location:
        field = getattr(settings, "model_fields", {}).get(part)
        annotation = field.annotation if field else settings
        inner = [annotation, *getattr(annotation, "__args__", ())]
        settings = next((one for one in inner if hasattr(one, "model_fields")), settings)
    return list(getattr(settings, "model_fields", {}))
