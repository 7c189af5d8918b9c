"""Profiles: every setting of a run, in one strictly typed YAML file.

A profile is a frozen value. It trains the paper's rows, `cpo_suite.paper`, but those that it
`leaves_out`, and rows of its own. An unknown or misspelt key is an error that names the key and the
nearest valid one; any key can be overridden with `dotted.key=value`.

A relative path is looked for beside the profile's file, then in the folder that the environment
variable CPO_DATA names; in an override it is relative to the current folder, and in a `Profile`
absolute.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic.functional_validators import AfterValidator, field_validator, model_validator

from cpo.data import ArticleColumn, PairColumn, Task
from cpo.evaluation.chat import secret_in
from cpo.negatives import SAMPLERS
from cpo.registry import nearest, unknown
from cpo.training import NEXT_TOKEN_OBJECTIVES, OBJECTIVES
from cpo_suite.paper import COMPARISONS, ROWS, Comparison, ModelName, Objective, Row, Steps, rows_of

ROOT = Path(__file__).resolve().parent.parent

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class ProfileError(ValueError):
    """A profile that cannot be used; the message says which key is wrong and what is valid."""


def _checked(check: Callable[[str], object]) -> AfterValidator:
    """Refuses a text where `check` raises ValueError."""

    def validate(text: str) -> str:
        check(text)
        return text

    return AfterValidator(validate)


def _without_secret(url: str) -> None:
    if secret := secret_in(url):
        raise ValueError(
            f"the address holds {secret}, and is written into results: put the key into the "
            "environment variable that api_key_variable names"
        )


def _in_the_paper(name: str) -> None:
    if not rows_of(name):
        raise ValueError(unknown("row", name, ROWS))


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
    train_rows: Count | None = None
    validation_rows: Count = 512
    test_prompts: Count = 1000
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
    validation_articles: Count = 64
    test_articles: Count = 1000
    max_tokens: int = Field(128, ge=16)


class Pretraining(_Settings):
    """How the suite makes a base model itself: a tokenizer and `steps` of packed articles.

    `instructions` adds the training pairs' text to the articles, so that a model of a million
    parameters meets the words it will be asked about.
    """

    steps: Count
    batch: Count
    block_tokens: int = Field(ge=8)
    learning_rate: Positive
    warmup_steps: int = Field(0, ge=0)
    vocabulary: int = Field(ge=258)
    instructions: bool = False


class ModelSettings(_Settings):
    """A base model: a folder, .gguf file or hub name (`pretrained`), or a configuration the suite
    pretrains.

    The number of parameters, width and layers, and the speeds of one process, measured on the
    profile's hardware, are for the plan's estimates alone.
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
        """Width and layers, as set or by the configuration; 0 where neither says."""
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
    """AdamW at a constant rate (section 4: weight decay 0.05); clip is the gradient-norm bound.

    The precision `auto` stands for the faster on this machine, as measured: `cpo.engine.precision`.
    """

    weight_decay: NotNegative = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: Positive = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    micro_batch_tokens: int = Field(32_768, ge=64)
    checkpoint_minutes: Positive = 10.0


class Processes(_Settings):
    """How many processes train, sample and score together, each with the model on its own device.

    `count` is that of all `machines` together. `options` are further arguments of `accelerate
    launch`; `before` is a command in front of it, such as `srun`. None of it changes what comes
    out, but for PSS, whose draws every process makes for its own share.
    """

    count: Count = 1
    machines: Count = 1
    options: list[str] = []
    before: list[str] = []

    @property
    def on_each_machine(self) -> int:
        """How many of the processes each machine runs."""
        return max(1, self.count // self.machines)


class Stage(_Settings):
    """One training stage: `steps` global batches of `batch` examples.

    The paper's rate is constant; a reference trained from scratch needs one that falls (cosine).
    """

    steps: Count
    batch: Count
    learning_rate: Positive
    schedule: Literal["constant", "cosine"] = "constant"


class ScheduledSampling(_Settings):
    """PSS: with what probability a token is replaced by a sampled one, and in how many passes."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    passes: Count = 3


class Continuation(_Settings):
    """The continued MLE and CPO rows: the same plan of prompts, from the same reference.

    `batch` is the global batch; BN are drawn from it. DPO's beta is CPO's, and the rates of PSS and
    DPO are those of MLE and CPO, unless given.
    """

    batch: int = Field(ge=2)
    steps: dict[Steps, Count]
    beta: Positive
    dpo_beta: Positive | None = None
    learning_rate: dict[Literal["mle", "cpo", "pss", "dpo"], Positive]
    scheduled_sampling: ScheduledSampling = ScheduledSampling()

    def rate_of(self, objective: Objective) -> float:
        """The learning rate of an objective."""
        rates: dict[Any, float] = {"pss": self.learning_rate["mle"], **self.learning_rate}
        return rates.get(objective, rates["cpo"])

    def beta_of(self, objective: Objective) -> float:
        """The scale of the rewards of an objective; 0 where it has none."""
        without = dict.fromkeys(NEXT_TOKEN_OBJECTIVES, 0.0)
        return {**without, "dpo": self.dpo_beta or self.beta}.get(objective, self.beta)


class Server(_Settings):
    """A chat model behind any server of OpenAI's chat completions, and what it may cost.

    `parameters` are sent as they are. Prices are in USD per million tokens; a run whose estimate is
    above `max_usd`, or that would send more than `max_requests`, is refused before it sends any.
    """

    model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a key

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
    """Who writes DPO's rejected responses: a chat model as in the paper (A.4), the embedded world's
    own writer, or a stand-in for real data without either: the response to another prompt."""

    writer: Literal["chat", "world", "other_response"] = "other_response"
    server: Server | None = None

    @model_validator(mode="after")
    def _complete(self) -> UnhelpfulSettings:
        if self.writer == "chat" and self.server is None:
            raise ValueError("the writer `chat` needs `server: {model: ...}`")
        return self


class Decoding(_Settings):
    """Arguments of `generate`; greedy unless said."""

    do_sample: bool = False
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int = 1


class JudgeSettings(_Settings):
    """Who compares a response with the recorded one.

    `none` leaves win rates empty; `openai` is a chat model behind a `server`; `local` a causal
    language model, `model` its folder or hub name; all else is a registered rule: `oracle`, which
    knows the embedded world, or the controls `longest` and `random`. `orders` is 2 to show each
    pair with the sides exchanged, too.
    """

    kind: str
    server: Server | None = None
    model: str | None = None
    batch: Count = 16
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
    def _complete(self) -> JudgeSettings:
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
    seeds: Count = 3
    max_text_tokens: int = Field(64, ge=4)


PaperRows = Annotated[str, _checked(_in_the_paper)]
Claim = Annotated[str, _checked(Comparison.parse)]


class Profile(_Settings):
    """All settings of a run; see the YAML files in `profiles/` for what each is for."""

    name: str
    description: str
    hardware: str
    minutes: Positive
    memory_gb: Positive
    disk_gb: Positive
    gpus: int = Field(0, ge=0)
    gpu_memory_gb: Positive | None = None  # of each, for the plan; 10**9 bytes
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
    embedded_texts_per_second: Positive = 430.0  # of one process; for the plan
    decoding: dict[str, Decoding]
    judge: JudgeSettings
    mauve: Mauve
    generation_batch: Count = 128
    # Of the paper's rows, by id or by how ids begin, as in `t3` and `x/small`.
    leaves_out: tuple[PaperRows, ...] = ()
    # Rows beside the paper's, by id; a notebook adds them with `Suite.add_row`.
    own_rows: dict[str, Row] = {}
    # What is trained: unless set, all of both but those left out.
    rows: tuple[str, ...] = Field(None, validate_default=True, strict=False)
    # Comparisons in place of the paper's for the same claim; see `cpo_suite.report.claims`.
    claims: dict[Annotated[int, Field(ge=1, le=12)], tuple[Claim, ...]] = Field(
        {}, validate_default=True
    )

    @field_validator("own_rows")
    @classmethod
    def _can_be_trained(cls, rows: dict[str, Row]) -> dict[str, Row]:
        for row_id, row in rows.items():
            if row_id != row.id or not row_id.startswith("own/"):
                raise ValueError(f"'{row_id}' is no id of a row of one's own, such as own/NAME")
            if row.alpha is not None:
                raise ValueError(f"{row_id} is an ensemble; use `cpo.ensembling` to mix two models")
            OBJECTIVES.check(row.objective)
            if (row.negatives is None) == (row.objective in OBJECTIVES):
                needs = "needs" if row.negatives is None else "has no use for"
                raise ValueError(f"{row_id}: the objective {row.objective} {needs} negatives")
        return rows

    @field_validator("rows", mode="before")
    @classmethod
    def _all_that_stay(cls, rows: Any, settings: ValidationInfo) -> Any:
        if rows is not None:
            return rows
        left_out = {row.id for name in settings.data.get("leaves_out", ()) for row in rows_of(name)}
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
                ("decoding", "greedy", self.decoding),  # of references, always
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
                    f"{stage}.batch: {batch} examples cannot be shared out evenly among "
                    f"{self.processes.count} processes: change one of the two"
                )
        for objective in ("mle", "cpo"):
            if objective not in self.continuation.learning_rate:
                raise ValueError(f"continuation.learning_rate: `{objective}` is missing")
        others = self.continuation.batch - 1
        for name, mixture in self.negatives.items():
            if (count := mixture.get("BN", 0)) > others:
                raise ValueError(
                    f"negatives.{name}: {count} BN cannot be drawn from the {others} other rows of "
                    "a global batch: raise continuation.batch or lower the count"
                )
        return self

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
            mixture: what the profile is to hold as the mixture of the row's id, such as
                `{"TN": 4}`; without one `row.negatives` names a mixture that it has.

        Raises:
            ProfileError: the row does not fit; the message says why.
        """
        mixtures = {} if mixture is None else {row.id: dict(mixture)}
        changed = {
            "own_rows": self.own_rows | {row.id: row},
            "rows": tuple(dict.fromkeys((*self.rows, row.id))),
            "negatives": self.negatives | mixtures,
        }
        return _validated(self.model_copy(update=changed).model_dump_json(), row.id)


def profile_names() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))


def load_profile(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile by name (`tiny`) or from a YAML file, with `dotted.key=value` overrides.

    Paths become absolute: those of the file are beside it or in the folder that CPO_DATA names,
    those of overrides are relative to the current one; whether they are there, `missing_paths`
    says. A model is a path where there is such a file or folder, or where it begins with `./`,
    `../`, `~` or `/` or ends in `.gguf`; else it is a name of the hub.

    Raises:
        ProfileError: naming the key and the nearest valid one, for an unknown profile or key, or a
            wrong type.
    """
    raw, _ = _read(name_or_path, overrides)
    return _validated(json.dumps(raw), Path(name_or_path).name)


def missing_paths(name_or_path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Of the files and folders that a profile names, those that are not there: by key, where they
    were looked for.

    Raises:
        ProfileError: there is no such profile, or it cannot be read.
    """
    _, missing = _read(name_or_path, overrides)
    command = f"`CPO_DATA=/path ./run_all.sh --profile {name_or_path}`"
    hint = f". CPO_DATA, the folder of data, is not set: {command}"
    return {key: text + (hint if _UNSET in text else "") for key, text in missing.items()}


# --- Reading --------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: plain YAML 1.1 reads `1e-5` as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?((\d+(\.\d*)?|\.\d+)[eE][-+]?\d+|\.\d+)$"),
    list("-+0123456789."),
)


def parse_value(text: str | bytes, name: str = "") -> Any:
    """A value as it would be read from a profile: `1e-5` a float, `true` a bool, `[a]` a list.

    It is of JSON's types, a date a text; where YAML has an alias stands a copy of its own, so that
    an override changes one place.

    Raises:
        ProfileError: it is not valid YAML; the message calls it by its name.
    """
    try:
        return json.loads(json.dumps(yaml.load(text, Loader=_Loader), default=str))
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ProfileError(f"{name or repr(text)} is not valid YAML: {problem}") from None


def with_absolute_paths(override: str) -> str:
    """The override with its paths absolute, so that it means the same in every folder."""
    key, _ = _key_and_value(override)
    return map_override(override, lambda value: _absolute(value, [Path.cwd()], {}, key))


def map_override(override: str, change: Callable[[Any], Any]) -> str:
    """The override with its value changed; as it was written where that changes nothing."""
    key, value = _key_and_value(override)
    changed = change(value)
    # As JSON, which is YAML too: a path may hold what has a meaning there.
    return override if changed == value else f"{key}={json.dumps(changed, ensure_ascii=False)}"


def _key_and_value(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ProfileError(f"an override is dotted.key=value, not '{override}'")
    return key.strip(), parse_value(text)


def _read(name: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a profile's file holds, with the overrides and absolute paths, and which are missing."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "profiles" / f"{name}.yaml"
        if not path.is_file():
            raise ProfileError(unknown("profile", str(name), profile_names()))
    elif not path.is_file():
        raise ProfileError(f"no profile file {path}")
    raw = parse_value(path.read_bytes(), str(path))
    if not isinstance(raw, dict):
        raise ProfileError(f"{path} must hold keys and values, not a {type(raw).__name__}")
    for override in overrides:
        key, value = _key_and_value(with_absolute_paths(override))
        *groups, last = key.split(".")
        group = raw
        for outer in groups:
            # One that the file leaves out is begun here; validation names it if there is no such.
            if group.get(outer) is None:
                group[outer] = {}
            group = group[outer]
            if not isinstance(group, dict):
                raise ProfileError(
                    f"unknown key '{key}': '{outer}' is one value, not a group of keys"
                )
        group[last] = value
    data = Path(os.environ.get("CPO_DATA") or _UNSET).expanduser()
    folders = [path.parent.resolve(), data if str(data) == _UNSET else data.absolute()]
    missing: dict[str, str] = {}
    return _absolute(raw, folders, missing), missing


# --- Paths ----------------------------------------------------------------------------------------

_UNSET = "$CPO_DATA"
_PATH_KEY = re.compile(r"(instructions|articles)\.path|judge\.model|models\.\w+\.pretrained")
_PATH = re.compile(r"^(\.{0,2}/|~)|\.gguf$")  # of a model, which is else a name of the hub


def _absolute(value: Any, folders: Sequence[Path], missing: dict[str, str], key: str = "") -> Any:
    """The value of a key with the paths in it absolute: in the first of the folders that has them.

    Those that are in none are added to `missing`, by key: where they were looked for.
    """
    if isinstance(value, dict):
        prefix = f"{key}." if key else ""
        return {
            name: _absolute(item, folders, missing, f"{prefix}{name}")
            for name, item in value.items()
        }
    if not isinstance(value, str) or not _PATH_KEY.fullmatch(key):
        return value
    text = os.path.expanduser(value)
    places = list(dict.fromkeys(os.path.normpath(folder / text) for folder in folders))
    if there := list(filter(os.path.exists, places)):
        return there[0]
    if not key.endswith(".path") and not _PATH.search(text):
        return value  # a name of the hub
    missing[key] = ", nor does ".join([f"{places[0]} does not exist", *places[1:]])
    return places[0]


# --- Validation -----------------------------------------------------------------------------------


def _validated(text: str, source: str) -> Profile:
    """The profile of a JSON text: strictness is then of types, not of tuples against lists."""
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(map(_explain, error.errors()))
        raise ProfileError(f"{source}: {problems}") from None


def _explain(problem: Any) -> str:
    """What is wrong with which key, and the nearest valid one."""
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
    """The valid keys of a group of settings, which lies under `keys` in a profile."""
    group: Any = Profile
    for key in keys:
        annotation = group.model_fields[key].annotation if key in group.model_fields else group
        inner = [annotation, *get_args(annotation)]  # of `Server | None`, `dict[str, Row]`
        group = next((part for part in inner if hasattr(part, "model_fields")), group)
    return list(group.model_fields)
