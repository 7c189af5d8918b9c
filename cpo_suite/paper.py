"""The rows of the paper's tables and figures, and the numbers it prints for them.

Feng, Ram, Hawkins, Rawal, Zhao, Zha: *Sequence-level Large Language Model Training with Contrastive
Preference Optimization*, Findings of NAACL 2025, arXiv 2502.16433.

A row says *what* is trained and compared; a profile says *how large*. Both are data, so the same
rows run at every size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cpo.data import Task

ModelName = Literal["gpt2", "llama", "llama_small"]
Objective = str  # mle, pss, cpo, ranked_cpo, dpo, ranking_nce; or one that a user registered
Steps = Literal["long", "short", "ablation", "articles"]
ReferenceName = Literal["reference", "ablation_reference", "articles_reference"]


@dataclass(frozen=True)
class Row:
    """One bar or one cell of the paper, or one of ours beside it.

    `negatives` names a mixture whose counts the profile gives; `steps` names a number of training
    steps there, `decoding` a way of decoding. `alpha` is the weight of the MLE end in the ensemble
    `alpha * theta_MLE + (1 - alpha) * theta_CPO` (section 4), None where the row is one trained
    model; `mle_weight` is alpha in the combined objective `alpha * L_MLE + L_CPO`. `paper` is the
    printed number, None where the paper draws a bar without printing its value, or has none.
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

    @property
    def table(self) -> str:
        """The table or figure panel the row belongs to: `t1`, `t2`, `f1b`, ..., `x` if ours."""
        return self.id.split("/")[0]

    @property
    def measure(self) -> str:
        """What its table reports: the win rate, or MAUVE (table 4)."""
        return "mauve" if self.table == "t4" else "win_rate"


def _ensembles(trained: Row, printed: dict[float, float]) -> list[Row]:
    """The rows `ID/alpha` of a trained CPO row ID, from itself (alpha = 0) upwards."""
    return [
        replace(trained, id=f"{trained.id}/{alpha:g}", alpha=alpha, paper=paper)
        for alpha, paper in printed.items()
    ]


# Table 1: GPT2-XL, Dolly. Table 2: OpenLlama-3B, Dolly; MLE1, ANR and AN were trained for 200
# steps.
_TABLE_1 = [
    Row("t1/MLE", "gpt2", "mle", "long", paper=0.471),
    Row("t1/PSS", "gpt2", "pss", "long", paper=0.086),
    Row("t1/DPO", "gpt2", "dpo", "long", "UN", paper=0.383),
    Row("t1/ANR", "gpt2", "ranked_cpo", "long", "AN", paper=0.506),
    *_ensembles(
        Row("t1/MixNR", "gpt2", "ranked_cpo", "long", "MixN"),
        {0: 0.476, 0.5: 0.479, 0.7: 0.487, 0.9: 0.485},
    ),
]
_TABLE_2 = [
    Row("t2/MLE1", "llama", "mle", "short", paper=0.505),
    Row("t2/PSS", "llama", "pss", "long", paper=0.270),
    Row("t2/DPO", "llama", "dpo", "long", "UN", paper=0.555),
    Row("t2/ANR", "llama", "ranked_cpo", "short", "AN", paper=0.643),
    Row("t2/AN", "llama", "cpo", "short", "AN", paper=0.56),
    Row("t2/MLE2", "llama", "mle", "long", paper=0.522),
    *_ensembles(
        Row("t2/MixNR", "llama", "ranked_cpo", "long", "MixN"),
        {0: 0.608, 0.1: 0.620, 0.3: 0.614, 0.5: 0.610, 0.7: 0.601, 0.9: 0.550},
    ),
    Row("t2/MixN", "llama", "cpo", "long", "MixN", paper=0.576),
]

# Tables 3 and 4, and figure 2: OpenLlama-3B, Wikipedia; four batch negatives, ranked.
_ARTICLES = Row("", "llama", "mle", "articles", task="articles", reference="articles_reference")
_BNR = replace(_ARTICLES, objective="ranked_cpo", negatives="BN-articles")
_TABLE_3 = [
    replace(_ARTICLES, id="t3/MLE", paper=0.508),
    *_ensembles(replace(_BNR, id="t3/BNR"), {0: 0.455, 0.5: 0.505, 0.7: 0.500, 0.9: 0.538}),
]
_TABLE_4 = [
    replace(_ARTICLES, id="t4/MLE", paper=0.524),
    *_ensembles(
        replace(_BNR, id="t4/BNR"),
        {0: 0.610, 0.1: 0.627, 0.3: 0.673, 0.5: 0.645, 0.7: 0.651, 0.9: 0.668},
    ),
]

# Figure 1, decoding panel. Which CPO model it shows is unstated: ANR, and MLE of as many steps.
DECODINGS = ("greedy", "top_p", "top_k", "beam")
_FIGURE_1A = [
    replace(row, id=f"{row.id}/{decoding}", decoding=decoding)
    for decoding in DECODINGS
    for row in (
        Row("f1a/MLE", "llama", "mle", "short"),
        Row("f1a/ANR", "llama", "ranked_cpo", "short", "AN"),
    )
]

# Figure 1, negatives panel: a reference of 1,000 steps, 4 negatives, 200 steps, always ranked. The
# text speaks of BNR, TNR and MNR; ANR, MixNR and continued MLE are added to read them against.
_MLE = Row("f1b/MLE", "llama", "mle", "ablation", reference="ablation_reference")
_FIGURE_1B = [_MLE] + [
    replace(_MLE, id=f"f1b/{kind}R", objective="ranked_cpo", negatives=f"{kind}-ablation")
    for kind in ("BN", "TN", "MN", "AN", "MixN")
]

# Beyond the paper: the combined objective that section 4 names and does not train; ranking NCE
# (appendix A.5), which has no reference; fewer negatives (K = 2 and 5 beside ANR's 12); and a
# smaller model, for the claim that the gain grows with the model.
_EXTRAS = [
    Row("x/MixNR+MLE/0.5", "llama", "ranked_cpo", "long", "MixN", mle_weight=0.5),
    Row("x/NCE", "llama", "ranking_nce", "short", "AN"),
    Row("x/ANR/K2", "llama", "ranked_cpo", "short", "AN-1"),
    Row("x/ANR/K5", "llama", "ranked_cpo", "short", "AN-4"),
    Row("x/small/MLE", "llama_small", "mle", "short"),
    Row("x/small/ANR", "llama_small", "ranked_cpo", "short", "AN"),
]

ROWS: dict[str, Row] = {
    row.id: row
    for row in [
        *_TABLE_1, *_TABLE_2, *_TABLE_3, *_TABLE_4, *_FIGURE_1A, *_FIGURE_1B, *_EXTRAS,
    ]
}  # fmt: skip

# The comparisons on which each claim is judged, named before anything ran; `Comparison` reads them.
# `>=` allows two points less, `~` two points either way.
COMPARISONS: dict[int, tuple[str, ...]] = {
    1: ("t1/ANR > t1/MLE", "t2/ANR > t2/MLE1", "t2/MixNR/0.1 > t2/MLE2"),
    2: (
        "t1/ANR > t1/DPO", "t1/ANR > t1/PSS", "t2/MixNR/0.1 > t2/DPO", "t2/MixNR/0.1 > t2/PSS",
    ),
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
}  # fmt: skip

JUDGED_BY = "GPT-3.5"


def rows_of(name: str) -> list[Row]:
    """The row of an id, or all rows whose ids begin with it: `t3`, `x/small`, `t1/MixNR`."""
    return [row for row in ROWS.values() if f"{row.id}/".startswith(f"{name}/")]


def continued_mle(row: Row) -> Row:
    """The MLE row a row is compared with: same model, same reference, same number of steps.

    The paper's MLE models "are continually trained for the same number of steps from the reference
    model, like the CPO models" (section 4).

    Raises:
        KeyError: the paper has none.
    """
    return _row_like(replace(row, objective="mle", negatives=None, alpha=None, mle_weight=0.0))


def cpo_end(row: Row) -> Row:
    """The trained CPO model of an ensemble row: its row with alpha = 0.

    Raises:
        KeyError: the paper has none.
    """
    return _row_like(replace(row, alpha=0))


def _row_like(row: Row) -> Row:
    """The paper's row that is otherwise equal; of two (tables 3 and 4) that of its own table."""
    bare = replace(row, id="", paper=None)
    alike = [other for other in ROWS.values() if replace(other, id="", paper=None) == bare]
    if not alike:
        raise KeyError(f"the paper has no {row.objective} row that goes with {row.id}")
    return min(alike, key=lambda other: other.table != row.table)
