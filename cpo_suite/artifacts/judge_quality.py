"""A judge's agreement with people: measured once for each judge and set of labelled pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpo.engine.files import MANIFEST
from cpo.evaluation.agreement import Quality, human_quality, judge_quality
from cpo.evaluation.judging import judge_responses
from cpo.evaluation.labelled import LabelledPairs
from cpo.evaluation.statistics import Estimate
from cpo_suite.judges import judge_identity, judge_of
from cpo_suite.profile import JudgeSettings
from cpo_suite.store import Artifact, Store, how

BASELINES = ("longest", "random")
ORDERS = 2  # always both: either alone may be the judge's favourite
Record = dict[str, Any]  # a `Quality` in plain numbers, with the name of the labelled pairs


@dataclass(frozen=True, kw_only=True)
class JudgeQuality(Artifact):
    """The quality of a judge on labelled pairs, and of the baselines.

    `judge` is `calibrated_identity`, `pairs` the hash of the labelled pairs.
    """

    stage = "judge_quality"
    version = 1

    judge: dict[str, Any]
    pairs: str
    labelled: LabelledPairs = how()
    settings: JudgeSettings = how()

    @classmethod
    def of(cls, settings: JudgeSettings, labelled: LabelledPairs) -> JudgeQuality:
        """The measurement of a profile's judge."""
        return cls(
            judge=calibrated_identity(settings),
            pairs=labelled.content_hash,
            labelled=labelled,
            settings=settings,
        )

    def build(self, folder: Path, store: Store) -> None:
        judge, labelled = judge_of(self.settings, "instructions", store.root), self.labelled
        assert judge is not None
        verdicts = judge_responses(judge, labelled.examples, labelled.responses, orders=ORDERS)
        verdicts.to_jsonl(folder / "verdicts.jsonl")
        lines = records(judge_quality(verdicts, labelled), labelled)
        (folder / "quality.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")

    def load(self, folder: Path) -> list[Record]:
        """The judge's record, then those of the baselines."""
        return json.loads((folder / "quality.json").read_text(encoding="utf-8"))


def records(quality: Quality, labelled: LabelledPairs) -> list[Record]:
    """The record of a measured judge, then those of the baselines: the longer response, a coin, and
    one person against the others."""

    def measured() -> Iterator[Quality | None]:
        yield quality
        for name in BASELINES:
            if name != quality.judge:
                examples, responses = labelled.examples, labelled.responses
                yield judge_quality(
                    judge_responses(name, examples, responses, orders=ORDERS), labelled
                )
        yield human_quality(labelled)

    return [_record(one, labelled.name) for one in measured() if one is not None]


def _record(quality: Quality, labelled: str) -> Record:
    record: Record = {"labelled": labelled, "beats_longest": quality.beats_longest}
    for name, value in vars(quality).items():
        if isinstance(value, Estimate):
            record |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        elif value is not None:
            record[name] = value
    return record


def calibrated_identity(settings: JudgeSettings) -> dict[str, Any]:
    """`judge_identity` on instructions, without the orders of a run: both are measured."""
    identity = judge_identity(settings, "instructions")
    return {name: value for name, value in identity.items() if name != "orders"}


def measured_quality(settings: JudgeSettings, store: Store) -> list[Record]:
    """The last measurement of a judge in a store, on whichever pairs: as `JudgeQuality.load`, or
    empty."""
    wanted = json.loads(json.dumps(calibrated_identity(settings)))
    found: list[tuple[str, Path]] = []
    for path in (store.root / JudgeQuality.stage).glob(f"[!.]*/{MANIFEST}"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recipe = manifest["recipe"]
        if (recipe["judge"], recipe["version"]) == (wanted, JudgeQuality.version):
            found.append((manifest["made"], path.parent))
    if not found:
        return []
    return json.loads((max(found)[1] / "quality.json").read_text(encoding="utf-8"))
