"""The rows of the paper's tables and figures, the numbers it prints for them, and its claims.

Feng, Ram, Hawkins, Rawal, Zhao, Zha: *Sequence-level Large Language Model Training with Contrastive
Preference Optimization*, Findings of NAACL 2025, arXiv 2502.16433.

A row states *what* is trained and compared, a profile *at what size*. Both are data, so the same
rows run at every size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Literal, cast

from pydantic import TypeAdapter

from cpo.data import Task
from cpo.registry import unknown

ModelName = Literal["gpt2", "llama", "llama_small"]
Objective = str  # mle, pss, or a name in `cpo.objectives.OBJECTIVES`, custom objectives included
Steps = Literal["long", "short", "ablation", "articles"]
ReferenceName = Literal["reference", "ablation_reference", "articles_reference"]
Ranking = Literal["minilm", "oracle"]
Relation = Literal[">", ">=", "~", "overhead"]


@dataclass(frozen=True)
class Row:
    """A bar or cell of the paper, or an additional row of ours.

    `negatives`, `steps` and `decoding` name a mixture, a number of training steps and a decoding
    method, all defined in the profile. `alpha` is the weight of MLE in the ensemble
    `alpha * theta_MLE + (1 - alpha) * theta_CPO` (section 4), None for a single trained model.
    `mle_weight` is alpha in the combined objective `alpha * L_MLE + L_CPO`. `paper` is the printed
    number, None if the paper prints none. `ranking` orders the candidates: by MiniLM's similarity,
    as in the paper, or by the grades of the embedded world's oracle. `beta` and `learning_rate`
    replace the profile's. Of each prompt's negatives a share `keep` is trained on: those least
    similar to the ground truth, as in Self-Contrast (Liu et al. 2024, arXiv 2404.00604), or with
    `keep_nearest` those most similar.

    The paper draws negatives once, from the reference. With `redraw`, they are drawn anew every so
    many steps: from the policy as it is then, which with `moving_reference` becomes the reference
    as well (SPIN, Chen et al. 2024, arXiv 2401.01335), or, as a control, from the reference again
    (`redraw_from`).
    """

    id: str
    model: ModelName
    objective: Objective
    steps: Steps
    negatives: str | None = None
    alpha: float | None = None
    paper: float | None = None
    task: Task = "instructions"
    reference: ReferenceName = "reference"
    decoding: str = "greedy"
    mle_weight: float = 0.0
    ranking: Ranking = "minilm"
    beta: float | None = None
    learning_rate: float | None = None
    keep: float = 1.0
    keep_nearest: bool = False
    redraw: int = 0
    redraw_from: Literal["policy", "reference"] = "policy"
    moving_reference: bool = False

    @property
    def table(self) -> str:
        """The row's table or figure panel: `t1`, `t2`, `f1b`, ...; `x` for additional rows, and
        `mode` for those of them that are about degeneration at the mode."""
        first, *rest = self.id.split("/")
        return "mode" if first == "x" and rest[0] == "mode" else first

    @property
    def measure(self) -> str:
        """The measure of its table: win rate, MAUVE (table 4), or repetition at the mode."""
        return {"t4": "mauve", "mode": "seq_rep_4"}.get(self.table, "win_rate")


# One line per trained model: id, model, objective, steps and negatives, then further fields, or the
# numbers printed in the paper; for an ensemble, one number per alpha in `_ALPHAS`.
# Table 1: GPT2-XL, Dolly. Table 2: OpenLlama-3B, Dolly; 200 steps of MLE1, ANR and AN.
# Tables 3 and 4, and figure 2: OpenLlama-3B, Wikipedia; four batch negatives, ranked.
# Figure 1, decoding panel: the CPO model is not stated; we take ANR, and MLE with equal steps.
# Figure 1, negatives panel: reference of 1,000 steps, 4 negatives, 200 steps, always ranked. The
# paper discusses BNR, TNR and MNR; we add ANR, MixNR and continued MLE for comparison.
# Beyond the paper (x): the combined objective, mentioned but not trained in section 4; ranking NCE
# (appendix A.5), which has no reference; AN without top-k, for which theory predicts MLE with
# noise; ANR ranked by the oracle, the positive control: what a perfect ranking would give; fewer
# negatives (K = 2 and 5, against ANR's 12); and a smaller model, for the claim that the gain grows
# with model size.
# Degeneration at the mode (x/mode): articles continued greedily and with 4 beams, where training on
# sequences is known to act. Beside MLE and the paper's negatives stand those that the decoder of
# the test itself draws.
_TABLE = """\
t1/MLE          gpt2        mle         long     -             0.471
t1/PSS          gpt2        pss         long     -             0.086
t1/DPO          gpt2        dpo         long     UN            0.383
t1/ANR          gpt2        ranked_cpo  long     AN            0.506
t1/MixNR        gpt2        ranked_cpo  long     MixN          0.476 0.479 0.487 0.485
t2/MLE1         llama       mle         short    -             0.505
t2/PSS          llama       pss         long     -             0.270
t2/DPO          llama       dpo         long     UN            0.555
t2/ANR          llama       ranked_cpo  short    AN            0.643
t2/AN           llama       cpo         short    AN            0.56
t2/MLE2         llama       mle         long     -             0.522
t2/MixNR        llama       ranked_cpo  long     MixN          0.608 0.620 0.614 0.610 0.601 0.550
t2/MixN         llama       cpo         long     MixN          0.576
t3/MLE          llama       mle         articles -             0.508
t3/BNR          llama       ranked_cpo  articles BN-articles   0.455 0.505 0.500 0.538
t4/MLE          llama       mle         articles -             0.524
t4/BNR          llama       ranked_cpo  articles BN-articles   0.610 0.627 0.673 0.645 0.651 0.668
f1a/MLE/greedy  llama       mle         short    -             decoding=greedy
f1a/ANR/greedy  llama       ranked_cpo  short    AN            decoding=greedy
f1a/MLE/top_p   llama       mle         short    -             decoding=top_p
f1a/ANR/top_p   llama       ranked_cpo  short    AN            decoding=top_p
f1a/MLE/top_k   llama       mle         short    -             decoding=top_k
f1a/ANR/top_k   llama       ranked_cpo  short    AN            decoding=top_k
f1a/MLE/beam    llama       mle         short    -             decoding=beam
f1a/ANR/beam    llama       ranked_cpo  short    AN            decoding=beam
f1b/MLE         llama       mle         ablation -
f1b/BNR         llama       ranked_cpo  ablation BN-ablation
f1b/TNR         llama       ranked_cpo  ablation TN-ablation
f1b/MNR         llama       ranked_cpo  ablation MN-ablation
f1b/ANR         llama       ranked_cpo  ablation AN-ablation
f1b/MixNR       llama       ranked_cpo  ablation MixN-ablation
x/MixNR+MLE/0.5 llama       ranked_cpo  long     MixN          mle_weight=0.5
x/NCE           llama       ranking_nce short    AN
x/AN-untruncated llama      cpo         short    AN-untruncated
x/ANR-oracle    llama       ranked_cpo  short    AN       ranking=oracle
x/ANR/K2        llama       ranked_cpo  short    AN-1
x/ANR/K5        llama       ranked_cpo  short    AN-4
x/small/MLE     llama_small mle         short    -
x/small/ANR     llama_small ranked_cpo  short    AN
x/mode/MLE/greedy        llama mle        articles -
x/mode/BNR/greedy        llama ranked_cpo articles BN-articles
x/mode/ANR/greedy        llama ranked_cpo articles AN-articles
x/mode/ANR-greedy/greedy llama ranked_cpo articles greedy-articles
x/mode/MLE/beam          llama mle        articles -               decoding=beam
x/mode/BNR/beam          llama ranked_cpo articles BN-articles     decoding=beam
x/mode/ANR/beam          llama ranked_cpo articles AN-articles     decoding=beam
x/mode/ANR-beam/beam     llama ranked_cpo articles beam-articles   decoding=beam
"""
_COLUMNS = ("id", "model", "objective", "steps", "negatives")
# By the count of printed numbers.
_ALPHAS = {0: (None,), 1: (None,), 4: (0.0, 0.5, 0.7, 0.9), 6: (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)}
_BY_STEPS = {
    "ablation": {"reference": "ablation_reference"},
    "articles": {"reference": "articles_reference", "task": "articles"},
}
DECODINGS = ("greedy", "top_p", "top_k", "beam")


def _rows(line: str) -> Iterator[Row]:
    """The rows of a line: a single row, or one per alpha, from alpha = 0 (trained) upwards."""
    words = line.split()
    pairs = [
        *zip(_COLUMNS, words, strict=False),
        *(word.split("=") for word in words if "=" in word),
    ]
    fields = {name: value for name, value in pairs if value != "-"}
    row = TypeAdapter(Row).validate_python(_BY_STEPS.get(fields["steps"], {}) | fields)
    printed = [float(word) for word in words[5:] if "=" not in word]
    for alpha, number in zip_longest(_ALPHAS[len(printed)], printed):
        row_id = row.id if alpha is None else f"{row.id}/{alpha:g}"
        yield replace(row, id=row_id, alpha=alpha, paper=number)


ROWS = {row.id: row for line in _TABLE.splitlines() for row in _rows(line)}

# Comparisons that decide each claim, fixed before any run; parsed by `Comparison`. `>=` tolerates a
# deficit of two points, `~` a difference of two points either way.
COMPARISONS: dict[int, tuple[str, ...]] = {
    1: ("t1/ANR > t1/MLE", "t2/ANR > t2/MLE1", "t2/MixNR/0.1 > t2/MLE2"),
    2: ("t1/ANR > t1/DPO", "t1/ANR > t1/PSS", "t2/MixNR/0.1 > t2/DPO", "t2/MixNR/0.1 > t2/PSS"),
    3: tuple(f"f1a/ANR/{decoding} > f1a/MLE/{decoding}" for decoding in DECODINGS),
    4: ("t2/ANR > t2/AN", "t2/MixNR/0 > t2/MixN"),
    5: ("f1b/BNR ~ f1b/TNR", "f1b/BNR >= f1b/MNR", "f1b/TNR >= f1b/MNR"),
    6: tuple(f"best({row}) >= ends({row})" for row in ("t1/MixNR", "t2/MixNR", "t3/BNR")),
    7: (
        "t1/MixNR/0.9 - t1/MixNR/0 > t2/MixNR/0.9 - t2/MixNR/0",
        "t3/BNR/0.9 - t3/BNR/0 > t2/MixNR/0.9 - t2/MixNR/0",
    ),
    8: ("t4/BNR/0.3 > t4/MLE",),
    9: ("overhead t2/MixNR/0",),
    10: ("f1b/ANR > f1b/BNR", "f1b/ANR > f1b/TNR", "f1b/ANR > f1b/MNR"),
    11: ("t2/ANR > x/ANR/K5", "x/ANR/K5 > x/ANR/K2"),
    12: ("t2/ANR - t2/MLE1 > x/small/ANR - x/small/MLE",),
    13: ("best(t3/BNR) > t3/MLE",),
}  # fmt: skip

# Beyond the paper, and named before any run as well: negatives drawn by the decoder used at test
# lessen repetition (seq_rep_4) under it. The left side is what should repeat more.
MODE_COMPARISONS = tuple(
    f"x/mode/MLE/{decoding} > x/mode/ANR-{decoding}/{decoding}" for decoding in ("greedy", "beam")
)

# Rows whose exposure bias is measured, each with its reference, where the true texts are known.
EXPOSURE_ROWS = ("t2/MLE1", "t2/ANR", "t2/MixNR/0", "t2/PSS", "t3/MLE", "t3/BNR/0")

# The most examples, the fewest sentences of a true text, the last sentence.
EXPOSURE_LIMITS: dict[Task, tuple[int, int, int]] = {
    "instructions": (300, 3, 5),
    "articles": (200, 2, 6),
}

JUDGED_BY = "GPT-3.5"


def rows_of(name: str) -> list[Row]:
    """The row with this id, or all rows below it: `t3`, `x/small`, `t1/MixNR`."""
    return [row for row in ROWS.values() if f"{row.id}/".startswith(f"{name}/")]


def continued_mle(row: Row) -> Row:
    """The MLE baseline of a row: same model, same reference, same number of steps.

    The paper's MLE models "are continually trained for the same number of steps from the reference
    model, like the CPO models" (section 4).

    Raises:
        KeyError: the paper has none.
    """
    shared = {name: getattr(row, name) for name in ("task", "reference", "decoding")}
    return _row_like(Row(row.id, row.model, "mle", row.steps, **shared))


def cpo_end(row: Row) -> Row:
    """The CPO end of an ensemble row: the same row with alpha = 0.

    Raises:
        KeyError: the paper has none.
    """
    return _row_like(replace(row, alpha=0))


def distinct_models(rows: Iterable[Row]) -> list[Row]:
    """The first row of each trained model or ensemble, in order: decodings and tables may share
    one, as table 4 does with table 3. An ensemble at alpha = 0 is the trained model."""
    first: dict[Row, Row] = {}
    for row in rows:
        bare = replace(row, id="", paper=None, decoding="greedy", alpha=row.alpha or None)
        first.setdefault(bare, row)
    return list(first.values())


def _row_like(row: Row) -> Row:
    """The paper's row that equals this one up to its id; of several, that of its own table."""
    bare = replace(row, id="", paper=None)
    alike = [other for other in ROWS.values() if replace(other, id="", paper=None) == bare]
    if not alike:
        raise KeyError(f"the paper has no {row.objective} row that matches {row.id}")
    return min(alike, key=lambda other: other.table != row.table)


@dataclass(frozen=True)
class Comparison:
    """`left relation right`, where each side is a signed sum of rows, or `overhead ROW`.

    `>` means greater, `>=` not worse by more than a margin, `~` equal within the margin.
    `best(t2/MixNR)` is the best interior ensemble on validation prompts, `ends(t2/MixNR)` the
    better end. `overhead ROW` compares training time with MLE continued for equal steps.
    `weights` holds each row's coefficient in `left - right`.
    """

    relation: Relation
    weights: dict[str, int]

    @classmethod
    def parse(cls, text: str) -> Comparison:
        """Parse a comparison.

        Raises:
            ValueError: invalid syntax, or an unknown row.
        """
        if text.startswith("overhead "):
            comparison = cls("overhead", {text.removeprefix("overhead ").strip(): 1})
        else:
            sides = re.split(r"\s(>=|>|~)\s", text)
            if len(sides) != 3:
                raise ValueError(f"'{text}' is not a comparison: write `ROW > ROW` (or >=, ~)")
            weights = Counter[str]()
            for sign, side in ((1, sides[0]), (-1, sides[2])):
                for term in re.split(r"\s(?=[+-]\s)", f"+ {side.strip()}"):
                    weights[term[2:]] += sign if term[0] == "+" else -sign
            comparison = cls(cast(Relation, sides[1]), weights)
        for row_id in comparison.rows:
            if row_id not in ROWS:
                raise ValueError(unknown("row", row_id, ROWS))
        return comparison

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Candidate rows of each `best` and `ends`."""
        matches = {name: re.fullmatch(r"(best|ends)\((\S+)\)", name) for name in self.weights}
        return {name: _choice(*match.groups()) for name, match in matches.items() if match}

    @property
    def rows(self) -> list[str]:
        """All rows it needs."""
        return [row for name in self.weights for row in self.choices.get(name, (name,))]

    @property
    def paper_effect(self) -> float | None:
        """`left - right` of the printed numbers; None if one is missing, and for an overhead.

        `best` and `ends` are the paper's own: the highest number among their rows.
        """
        effect = 0.0
        for name, weight in self.weights.items():
            printed = [ROWS[row].paper for row in self.choices.get(name, (name,))]
            numbers = [number for number in printed if number is not None]
            if self.relation == "overhead" or len(numbers) < len(printed):
                return None
            effect += weight * max(numbers)
        return round(effect, 4)  # the paper prints three digits


def chosen_among(comparisons: Iterable[str]) -> set[str]:
    """All rows among which the `best` and `ends` of some comparisons choose."""
    parsed = map(Comparison.parse, comparisons)
    return {row for one in parsed for choice in one.choices.values() for row in choice}


def _choice(which: str, trained: str) -> tuple[str, ...]:
    ensembles = [row for row in rows_of(trained) if row.alpha is not None]
    if not ensembles:
        raise ValueError(f"{which}({trained}): there are no ensembles '{trained}/alpha'")
    if which == "best":
        return tuple(row.id for row in ensembles if row.alpha)
    return (ensembles[0].id, continued_mle(ensembles[0]).id)
