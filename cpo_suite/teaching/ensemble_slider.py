"""Responses of ensembles of an MLE and a CPO model, side by side, with scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ipywidgets
import pandas as pd
from markupsafe import Markup

from cpo_suite.teaching.markup import markup_table, text_of
from cpo_suite.teaching.piece import Piece

STORED_PROMPTS, STORED_ALPHAS = 4, 3
ENDS = {0.0: " (CPO)", 1.0: " (MLE continued)"}


def ensemble_slider(
    prompts: Sequence[str],
    recorded: Sequence[str],
    answers: Mapping[float, Sequence[str]],
    scores: Mapping[str, Mapping[float, Sequence[float]]],
) -> Piece:
    """The response of the ensemble at the chosen alpha, between its ends, with all scores.

    Args:
        recorded: the response to each prompt in the data.
        answers: for each alpha a response to each prompt; alpha 0 is CPO, 1 is MLE.
        scores: by name, for each of these alphas a score of each response, NaN where unknown.

    Raises:
        ValueError: no alpha, or lists that are not as long as `prompts`.
    """
    if not answers:
        raise ValueError("there is no alpha to show: give the answers of one model at least")
    columns: dict[str, Sequence[object]] = {"recorded responses": recorded}
    for name, by_alpha in {"answers": answers, **scores}.items():
        columns |= {f"{name} at alpha {alpha:g}": by_alpha[alpha] for alpha in by_alpha}
    for name, column in columns.items():
        if len(column) != len(prompts):
            raise ValueError(f"{len(column)} {name} to {len(prompts)} prompts")

    def draw(alpha: float, prompt: int) -> Markup:
        row = prompt - 1
        return Markup("<p><b>Prompt {}.</b> {}</p>{}{}").format(
            prompt,
            text_of(prompts[row]),
            _answers(recorded[row], {alpha: answers[alpha][row] for alpha in answers}, alpha),
            _scores(scores, alpha, row) if scores else "",
        )

    states = {
        f"prompt {row + 1}, alpha {alpha:g}": {"prompt": row + 1, "alpha": alpha}
        for row in _telling_prompts(answers)
        for alpha in _alphas_to_store(answers)
    }
    slider = ipywidgets.SelectionSlider(
        options=[(f"{alpha:g}", alpha) for alpha in sorted(answers)],
        value=sorted(answers)[len(answers) // 2],
        description="alpha",
    )
    prompt = ipywidgets.IntSlider(1, min=1, max=len(prompts), description="prompt")
    return Piece("Ensemble slider", draw, states, alpha=slider, prompt=prompt)


def _telling_prompts(answers: Mapping[float, Sequence[str]]) -> list[int]:
    """Rows of the first prompts to which both ends answer otherwise, or else of the first."""
    cpo, mle = answers[min(answers)], answers[max(answers)]
    differ = [row for row in range(len(cpo)) if cpo[row] != mle[row]]
    return (differ or list(range(len(cpo))))[:STORED_PROMPTS]


def _alphas_to_store(answers: Mapping[float, Sequence[str]]) -> list[float]:
    """Alphas evenly from those between the ends, which are shown beside any; all, of two or one."""
    between = sorted(answers)[1:-1] or sorted(answers)
    count = min(STORED_ALPHAS, len(between))
    return [between[(2 * at + 1) * len(between) // (2 * count)] for at in range(count)]


def _answers(recorded: str, answers: Mapping[float, str], chosen: float) -> Markup:
    """The answer at alpha `chosen` between those of both ends; a text is shown once."""
    columns = {"recorded": recorded}
    first: dict[str, float] = {}  # of each text, the first alpha that gave it
    for alpha in sorted({min(answers), chosen, max(answers)}):
        text = answers[alpha]
        same = f"(the same text as at alpha = {first[text]:g})" if text in first else text
        columns[f"alpha = {alpha:g}{ENDS.get(alpha, '')}"] = same
        first.setdefault(text, alpha)
    return markup_table(columns, [[text_of(text) for text in columns.values()]])


def _scores(
    scores: Mapping[str, Mapping[float, Sequence[float]]], chosen: float, prompt: int
) -> Markup:
    """A row for each alpha: every score on this prompt, and its mean over all that are known."""
    columns = {}
    for name, by_alpha in scores.items():
        values = pd.DataFrame(dict(by_alpha), dtype=float)  # [prompts, alphas]
        columns[f"{name}, this prompt"] = values.loc[prompt]
        columns[f"{name}, mean"] = values.mean()
    numbers = pd.DataFrame(columns).sort_index().map("{:.3f}".format, na_action="ignore")
    numbers.index = [f"{alpha:g}{' (chosen)' * (alpha == chosen)}" for alpha in numbers.index]
    return markup_table(["alpha", *columns], numbers.fillna("").itertuples(), row_names=True)
