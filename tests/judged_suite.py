"""As much of a suite as tables, figures and the report read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cpo.evaluation.judging import Side, Verdict, Verdicts
from cpo.evaluation.statistics import Estimate
from cpo_suite.profile import Profile, load_profile


def trial_profile() -> Profile:
    return load_profile("tiny").model_copy(
        update={"name": "trial", "rows": ("t1/MLE", "t1/MixNR/0.5", "f1b/MLE", "f1b/BNR")}
    )


class FakeSuite:
    """Every judged row: 6 wins, 2 ties, 1 loss, 1 invalid; with another seed the 6 are losses."""

    def __init__(self, profile: Profile, judged: bool = True) -> None:
        self.profile = profile
        self.judged = judged
        self.asked: list[tuple[str, str | None, int]] = []
        self.quality: list[dict[str, Any]] = []  # of the judge: not measured

    def verdicts(self, row_id: str, decoding: str | None = None, seed: int = 0) -> Verdicts | None:
        self.asked.append((row_id, decoding, seed))
        if not self.judged:
            return None
        win: Verdict = "A" if seed == 0 else "B"
        said: list[Verdict] = [*[win] * 6, "tie", "tie", "B", "invalid"]
        sides: list[Side] = ["A"] * 10
        ids = tuple(str(number) for number in range(10))
        return Verdicts("oracle", ids, tuple(sides), tuple(said))

    def judge_quality(self) -> list[dict[str, Any]]:
        return self.quality

    def measures(self, row_id: str, seed: int = 0) -> Mapping[str, Estimate]:
        return {
            "mauve": Estimate(0.4 + seed / 10, 0.35, 0.45, 200),
            "tokens": Estimate(30, 28, 33, 10),
        }
