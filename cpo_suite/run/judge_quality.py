"""`python -m cpo_suite judge-quality`: a judge measured on pairs that people have labelled."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from cpo.data import DataError
from cpo.evaluation.agreement import judge_quality
from cpo.evaluation.chat import ChatError
from cpo.evaluation.judging import JudgeError
from cpo.evaluation.labelled import LabelledPairs, read_labelled, read_pandalm
from cpo.evaluation.reply_store import ReplyStoreError
from cpo.evaluation.statistics import MetricError
from cpo.models.folders import ModelFolderError
from cpo_suite.artifacts.judge_quality import JudgeQuality, Record, records
from cpo_suite.profile import JudgeSettings, ProfileError, load_profile
from cpo_suite.report.captions import quality_in_words
from cpo_suite.store import Store, artifacts_folder

RECORDED = "recorded:"  # a judge whose verdicts stand in the labelled file
WITH_INTERVAL = ("agreement", "kappa", "over_longest", "accuracy", "pick_a", "flip_rate")
_FAULTS = (
    OSError, DataError, JudgeError, MetricError, ChatError, ReplyStoreError, ModelFolderError,
)  # fmt: skip


def print_quality(
    profile: str, settings: Sequence[str], judge: str | None, model: str | None, pairs: str | None
) -> int:
    """Measure a judge, print its quality beside the baselines, and store it for the tables.

    Args:
        profile, settings: the profile whose judge is measured, and its overrides.
        judge: a kind that replaces the profile's, or `recorded:NAME`.
        model: of the kinds `local` (folder or hub name) and `openai` (the server's name of it).
        pairs: a file as `read_labelled` reads it; None for PandaLM's pairs in CPO_DATA.

    Returns:
        The exit code: 0, or 2 where an input is missing or cannot be used.

    Raises:
        ProfileError: the profile or the judge's settings are invalid.
    """
    recorded = judge.removeprefix(RECORDED) if judge and judge.startswith(RECORDED) else None
    chosen = None if recorded else _settings(profile, settings, judge, model)
    try:
        labelled = _labelled(pairs)
        if chosen is None:
            quality = judge_quality(labelled.recorded_verdicts(str(recorded)), labelled)
            lines = records(quality, labelled)
        else:
            lines = Store(artifacts_folder()).load(JudgeQuality.of(chosen, labelled))
    except _FAULTS as error:
        print(error, file=sys.stderr)
        return 2
    print(tabulate([_shown(line) for line in lines], headers="keys", tablefmt="github"))
    print("Brackets are 95 % intervals; they draw whole prompts.")
    print(quality_in_words(lines))
    return 0


def _settings(
    profile: str, settings: Sequence[str], judge: str | None, model: str | None
) -> JudgeSettings:
    """The settings of the judge that is asked for."""
    overrides = [*settings, *([f"judge.kind={json.dumps(judge)}"] if judge else [])]
    if model:
        kind = judge or load_profile(profile, overrides).judge.kind
        key = {"openai": "judge.server.model", "local": "judge.model"}.get(kind)
        if key is None:
            raise ProfileError(f"--judge-model is for the judges local and openai, not for {kind}")
        overrides.append(f"{key}={json.dumps(model)}")
    chosen = load_profile(profile, overrides).judge
    if chosen.kind in ("none", "oracle"):
        reason = {"none": "has no judge", "oracle": "has the oracle, of the embedded world alone"}
        raise ProfileError(
            f"the profile {profile} {reason[chosen.kind]}: give a judge of labelled pairs with "
            "--judge, such as longest, local, openai or recorded:gpt-3.5"
        )
    return chosen


def _labelled(pairs: str | None) -> LabelledPairs:
    """The labelled pairs of a file, or PandaLM's."""
    if pairs:
        return read_labelled(Path(pairs))
    data = os.environ.get("CPO_DATA")
    folder = Path(data or "$CPO_DATA") / "pandalm"
    if folder.is_dir():
        return read_pandalm(folder)
    raise DataError(
        f"{folder}, the folder of PandaLM's labelled pairs, does not exist"
        f"{'' if data else ': CPO_DATA is not set'}. Run `CPO_DATA=/path ./run_all.sh "
        "judge-quality`, or give labelled pairs with --pairs FILE"
    )


def _shown(record: Record) -> dict[str, str]:
    """A line of the printed table."""
    line = {"judge": record["judge"], "pairs": f"{record['pairs']:,}"}
    line |= {"orders": str(record["orders"]), "invalid": f"{record['invalid']:,}"}
    for name in WITH_INTERVAL:
        value, low, high = (record.get(f"{name}{end}") for end in ("", "_low", "_high"))
        shown = "" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
        line[name.replace("_", " ")] = shown
    return line
