"""The rows of the paper's tables and figures, and the numbers it prints for them.

Feng, Ram, Hawkins, Rawal, Zhao, Zha: *Sequence-level Large Language Model Training with Contrastive
Preference Optimization*, Findings of NAACL 2025, arXiv 2502.16433.

A row says *what* is trained and compared; a profile says *how large*. Both are data, so the same
rows run at every size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Task = Literal["instructions", "articles"]
ModelName = Literal["gpt2", "llama"]
Steps = Literal["long", "short", "ablation"]
ReferenceName = Literal["reference", "ablation_reference"]


@dataclass(frozen=True)
class Row:
    """One bar or one cell of the paper.

    `negatives` names a mixture whose counts the profile gives; `steps` names a number of training
    steps there. `alpha` is the weight of the MLE end in the ensemble `alpha * theta_MLE + (1 -
    alpha) * theta_CPO` (section 4), None where the row is one trained model. `paper` is the printed
    number, None where the paper draws a bar without printing its value. `implemented` is False for
    rows whose
    method this version does not train yet: their cells stay empty.
    """

    id: str
    model: ModelName
    objective: Literal["mle", "cpo", "ranked_cpo", "dpo", "pss"]
    steps: Steps
    negatives: str | None = None
    alpha: float | None = None
    paper: float | None = None
    task: Task = "instructions"
    reference: ReferenceName = "reference"
    implemented: bool = True

    @property
    def table(self) -> str:
        """The table or figure panel the row belongs to: `t1`, `t2`, `f1b`, ..."""
        return self.id.split("/")[0]


def _ensemble(prefix: str, model: ModelName, values: dict[float, float]) -> list[Row]:
    """The rows `prefix/alpha`: MixNR models of one table, from the CPO end (alpha = 0) upwards."""
    return [
        Row(f"{prefix}/{alpha:g}", model, "ranked_cpo", "long", "MixN", alpha, paper)
        for alpha, paper in values.items()
    ]


# Table 1: GPT2-XL, Dolly. Table 2: OpenLlama-3B, Dolly; MLE1, ANR and AN were trained for 200
# steps.
_TABLE_1 = [
    Row("t1/MLE", "gpt2", "mle", "long", paper=0.471),
    Row("t1/PSS", "gpt2", "pss", "long", paper=0.086, implemented=False),
    Row("t1/DPO", "gpt2", "dpo", "long", paper=0.383, implemented=False),
    Row("t1/ANR", "gpt2", "ranked_cpo", "long", "AN", paper=0.506),
    *_ensemble("t1/MixNR", "gpt2", {0: 0.476, 0.5: 0.479, 0.7: 0.487, 0.9: 0.485}),
]
_TABLE_2 = [
    Row("t2/MLE1", "llama", "mle", "short", paper=0.505),
    Row("t2/PSS", "llama", "pss", "long", paper=0.270, implemented=False),
    Row("t2/DPO", "llama", "dpo", "long", paper=0.555, implemented=False),
    Row("t2/ANR", "llama", "ranked_cpo", "short", "AN", paper=0.643),
    Row("t2/AN", "llama", "cpo", "short", "AN", paper=0.56),
    Row("t2/MLE2", "llama", "mle", "long", paper=0.522),
    *_ensemble(
        "t2/MixNR",
        "llama",
        {0: 0.608, 0.1: 0.620, 0.3: 0.614, 0.5: 0.610, 0.7: 0.601, 0.9: 0.550},
    ),
    Row("t2/MixN", "llama", "cpo", "long", "MixN", paper=0.576),
]

# Figure 1, negatives panel: a reference of 1,000 steps, 4 negatives, 200 steps, always ranked. The
# text speaks of BNR, TNR and MNR; ANR, MixNR and continued MLE are added to read them against.
_FIGURE_1B = [
    Row("f1b/MLE", "llama", "mle", "ablation", reference="ablation_reference"),
    *(
        Row(
            f"f1b/{kind}R",
            "llama",
            "ranked_cpo",
            "ablation",
            f"{kind}-ablation",
            reference="ablation_reference",
        )
        for kind in ("BN", "TN", "MN", "AN", "MixN")
    ),
]

ROWS: dict[str, Row] = {row.id: row for row in [*_TABLE_1, *_TABLE_2, *_FIGURE_1B]}

JUDGED_BY = "GPT-3.5"


def rows_of(table: str) -> list[Row]:
    """The rows of one table or panel, in the paper's order."""
    return [row for row in ROWS.values() if row.table == table]


def continued_mle(row: Row) -> Row:
    """The MLE row a row is compared with: same model, same reference, same number of steps.

    The paper's MLE models "are continually trained for the same number of steps from the reference
    model, like the CPO models" (section 4).
    """
    for other in ROWS.values():
        if (other.objective, other.model, other.task, other.reference, other.steps) == (
            "mle",
            row.model,
            row.task,
            row.reference,
            row.steps,
        ):
            return other
    raise KeyError(f"no continued-MLE row goes with {row.id}")


def cpo_end(row: Row) -> Row:
    """The trained CPO model of an ensemble row: its row with alpha = 0."""
    end = replace(row, alpha=0, id="", paper=None)
    for other in ROWS.values():
        if replace(other, id="", paper=None) == end:
            return other
    raise KeyError(f"no CPO row goes with {row.id}")
