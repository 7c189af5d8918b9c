"""What artifacts are once they are made: a model to load, and a training's negatives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpo.engine import machine
from cpo.models.folders import load_model
from cpo.scoring import Group
from cpo.training import TrainingExample
from cpo_suite.store import Recipe


@dataclass(frozen=True)
class Artifact:
    """A model folder of the store, loadable with `from_pretrained`, and the recipe that made it."""

    name: str
    recipe: Recipe
    path: Path

    def load(self) -> Any:
        """The causal language model, fp32, in evaluation mode, on the GPU where there is one.

        Raises:
            ModelFolderError: as `load_model`.
        """
        model = load_model(self.path)
        return model.to(machine.device()).eval()


class Negatives:
    """The planned rows of one CPO training, with their candidates, order and reference values.

    N planned rows, K columns, column 0 the ground truth. Arrays: `mask` bool, `order` int, best
    first, `similarities` and `reference_logps` float32, all `[N, K]`.
    """

    def __init__(self, folder: Path, prefixes: Sequence[Sequence[int]], tokenizer: Any) -> None:
        arrays = np.load(folder / "negatives.npz")
        self.mask, self.order = arrays["mask"], arrays["order"]
        self.similarities, self.reference_logps = arrays["similarities"], arrays["reference_logps"]
        self._tokens, self._lengths = arrays["tokens"], arrays["lengths"]
        self._starts = np.concatenate([[0], self._lengths.ravel().cumsum()])
        self.report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
        self.kinds: list[str] = self.report["kinds"]
        self.prefixes = prefixes
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.mask)

    def candidates(self, row: int) -> list[tuple[int, ...]]:
        """The K continuations of a planned row as ids, in column order; a masked one is empty."""
        k = len(self.kinds)
        bounds = self._starts[row * k : row * k + k + 1]
        return [
            tuple(self._tokens[a:b].tolist()) for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        ]

    def texts(self, row: int) -> list[str]:
        """The K continuations of a planned row as text, in column order."""
        return self.tokenizer.batch_decode(self.candidates(row), skip_special_tokens=True)

    def training_examples(self, ranked: bool) -> Sequence[TrainingExample]:
        """What a training sees: the columns in their order, best first when ranked."""
        columns = self.order if ranked else np.tile(np.arange(len(self.kinds)), (len(self), 1))
        examples = []
        for row, order in enumerate(columns):
            candidates = self.candidates(row)
            examples.append(
                TrainingExample(
                    Group(self.prefixes[row], [candidates[column] for column in order]),
                    self.mask[row, order].tolist(),
                    self.reference_logps[row, order].tolist(),
                )
            )
        return examples
