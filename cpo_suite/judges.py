"""Judges, built from a profile's settings."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from cpo.data import Task
from cpo.engine import machine
from cpo.engine.files import hash_file, hash_folder
from cpo.evaluation.chat import ChatServer
from cpo.evaluation.judge_prompts import PARSER_VERSION, template_hash
from cpo.evaluation.judging import Judge, judge_named, rule_identity
from cpo.evaluation.model_judges import ChatJudge, LocalJudge
from cpo.evaluation.reply_store import STORE
from cpo.models.folders import fetched, load_model, load_tokenizer
from cpo_suite.profile import JudgeSettings, Server


def judge_of(settings: JudgeSettings, task: Task, folder: Path) -> Judge | None:
    """The profile's judge; None for the kind `none`.

    Args:
        folder: of the reply store, created if missing.

    Raises:
        JudgeError: an unknown judge.
    """
    if settings.kind == "none":
        return None
    if settings.server is not None and settings.kind == "openai":
        server = chat_server(settings.server, "judge.server")
        return ChatJudge(server, folder / STORE, task)
    if settings.model is not None and settings.kind == "local":
        return _local_judge(
            settings.model, settings.batch, settings.minimum_mass, settings.precision, task
        )
    return judge_named(settings.kind)


def judge_identity(settings: JudgeSettings, task: Task) -> dict[str, Any]:
    """Everything about a judge that determines its verdicts, for artifact keys."""
    identity: dict[str, Any] = {"kind": settings.kind, "orders": settings.orders}
    if settings.server is not None and settings.kind == "openai":
        server = settings.server.model_dump(include={"model", "base_url", "parameters"})
        return identity | server | {"prompt": template_hash(task), "parser": PARSER_VERSION}
    if settings.kind == "local":
        model = _content(str(settings.model))
        identity |= {"model": model, "minimum_mass": settings.minimum_mass}
        identity["precision"] = settings.precision
        identity["prompt"] = template_hash(task)
    elif settings.kind != "none":
        identity["kind"] = rule_identity(settings.kind)
    return identity


@cache
def _content(name: str) -> str:
    """Identity of a judging model: the hash of its files, or its hub name."""
    path = Path(name)
    if path.is_file():
        return hash_file(path)
    return hash_folder(path) if path.is_dir() else name


def chat_server(settings: Server, setting: str) -> ChatServer:
    """The chat server of a profile's settings; `setting` is their key in the profile."""
    return ChatServer(**settings.model_dump(), setting=setting)


@cache
def _local_judge(
    name: str, batch: int, minimum_mass: float, precision: str, task: Task
) -> LocalJudge:
    """A local judge, loaded once.

    Raises:
        FileNotFoundError, ModelFolderError: as `fetched` and `load_model`.
    """
    path = fetched(name)
    tokenizer, model = load_tokenizer(path), load_model(path, "auto", may_be_quantised=True)
    model.to(machine.device()).eval()
    return LocalJudge(model, tokenizer, Path(name).name, task, batch, minimum_mass, precision)
