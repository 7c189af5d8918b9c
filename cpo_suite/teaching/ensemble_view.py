"""What ensembles of one MLE and one CPO model answer, side by side, with scores."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EnsembleAnswers:
    """Prompts, their recorded responses, and for each alpha the answers and their scores.

    `answers[alpha]` and `scores[name][alpha]` are aligned with `prompts`; alpha 0 is CPO, 1 is MLE.
    """

    prompts: Sequence[str]
    recorded: Sequence[str]
    answers: Mapping[float, Sequence[str]]
    scores: Mapping[str, Mapping[float, Sequence[float]]]

    def __post_init__(self) -> None:
        lists: dict[str, Sequence[object]] = {"recorded responses": self.recorded}
        lists |= {f"answers at alpha {alpha:g}": one for alpha, one in self.answers.items()}
        for name, by_alpha in self.scores.items():
            lists |= {f"{name} at alpha {alpha:g}": one for alpha, one in by_alpha.items()}
        for name, one in lists.items():
            if len(one) != len(self.prompts):
                raise ValueError(f"{len(one)} {name} to {len(self.prompts)} prompts")
        if not self.answers:
            raise ValueError("there is no alpha to show: give the answers of one model at least")

    @property
    def alphas(self) -> list[float]:
        """From CPO's end to MLE's."""
        return sorted(self.answers)


def ensemble_page(given: EnsembleAnswers, alpha: float, prompt: int) -> str:
    """The answers at `alpha` between those of both ends, and all scores; texts are escaped.

    Args:
        prompt: an index into the prompts, from 0.
    """
    shown = list(dict.fromkeys([given.alphas[0], alpha, given.alphas[-1]]))
    columns = {"recorded": given.recorded[prompt]}
    for one in shown:
        text = given.answers[one][prompt]
        first = next(other for other in shown if given.answers[other][prompt] == text)
        columns[_name(one)] = text if one == first else f"(the same text as at alpha = {first:g})"
    cells = "".join(
        f"<td style='text-align:left;vertical-align:top;white-space:pre-wrap'>"
        f"{html.escape(text) or '(empty)'}</td>"
        for text in columns.values()
    )
    head = "".join(
        f"<th scope='col' style='text-align:left'>{html.escape(name)}</th>" for name in columns
    )
    return (
        f"<p style='white-space:pre-wrap'><b>Prompt {prompt + 1}.</b> "
        f"{html.escape(given.prompts[prompt])}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"
        + _scores(given, alpha, prompt)
    )


def _scores(given: EnsembleAnswers, chosen: float, prompt: int) -> str:
    """A line for each alpha: every score on this prompt, and its mean over all."""
    names = [name for score in given.scores for name in (f"{score}, this prompt", f"{score}, mean")]
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in ("alpha", *names))
    lines = []
    for alpha in given.alphas:
        cells = []
        for by_alpha in given.scores.values():
            values = np.asarray(by_alpha[alpha], dtype=float)
            known = values[~np.isnan(values)]
            cells += [_number(values[prompt]), _number(known.mean() if len(known) else math.nan)]
        label = f"<b>{alpha:g} (chosen)</b>" if alpha == chosen else f"{alpha:g}"
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><th scope='row'>{label}</th>{body}</tr>")
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        if given.scores
        else ""
    )


def _name(alpha: float) -> str:
    return f"alpha = {alpha:g}" + {0.0: " (CPO)", 1.0: " (MLE continued)"}.get(alpha, "")


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
