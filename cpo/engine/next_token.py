"""The next token of each row: greedy, or drawn as transformers' `generate` draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The most probable entries that are sorted first for top-p sampling: they nearly always hold its
# mass, and sorting all takes several times as long as a small model's forward pass.
CANDIDATES = 64


@dataclass(frozen=True)
class NextToken:
    """Temperature, then the `top_k` most probable, then of these the smallest set that holds the
    mass `top_p` (Holtzman et al., 2020), as in transformers.

    Attributes:
        top_k: 1 is greedy decoding; None for all entries.
    """

    top_k: int | None = None
    top_p: float = 1.0
    temperature: float = 1.0

    @classmethod
    def of(cls, options: dict[str, Any]) -> NextToken | None:
        """From arguments of transformers' `generate`; None for beams and other methods."""
        others = options.keys() - {"do_sample", "num_beams", "top_k", "top_p", "temperature"}
        if others or options.get("num_beams", 1) != 1:
            return None
        if not options["do_sample"]:
            return cls(top_k=1)
        top_k, top_p = options["top_k"] or None, float(options.get("top_p", 1.0))
        temperature = float(options.get("temperature", 1.0))
        # transformers says what is wrong with other values.
        valid = (top_k or 1) >= 1 and 0 < top_p <= 1 and temperature > 0
        return cls(top_k, top_p, temperature) if valid else None

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Ids `[R]` by logits `[R, V]`, fp32."""
        if self.top_k == 1:
            return logits.max(-1).indices
        probabilities, ids = self.candidates(logits)
        choice = torch.multinomial(probabilities, 1, generator=generator)
        return ids.gather(-1, choice)[:, 0]

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What may be drawn by logits `[R, V]`, fp32: probabilities up to a factor, and ids; both
        `[R, C]`."""
        entries = logits.shape[-1]
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < entries:
            best = logits.topk(self.top_k)
            probabilities, ids = best.values.softmax(-1), best.indices
        elif self.top_p < 1:
            probabilities, ids = _most_probable(logits.softmax(-1), self.top_p)
        else:
            return logits.softmax(-1), torch.arange(entries, device=logits.device).expand_as(logits)
        if self.top_p < 1:
            better = probabilities.cumsum(-1) - probabilities  # mass of more probable entries
            probabilities = probabilities.masked_fill(better >= self.top_p, 0)
        return probabilities, ids


def _most_probable(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """The most probable entries, best first, and their ids, as many as hold the mass in every
    row."""
    entries, count = probabilities.shape[-1], CANDIDATES
    while True:
        best = probabilities.topk(min(count, entries))
        if count >= entries or bool((best.values.sum(-1) >= mass).all()):
            return best.values, best.indices
        count *= 4
