"""Models of a given size, random prompts with K continuations, and their operation counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.measurements import device
from cpo.engine.precision import Precision, measure
from cpo.scoring import Group

K = 12  # candidates, as in the paper: the ground truth and 11 negatives


@cache
def precision() -> Precision:
    """The faster precision here, used on both sides of every comparison."""
    return measure(SMALL_VOCABULARY.width).faster


def product_dtype() -> torch.dtype:
    """The dtype of matrix products in this precision."""
    return torch.bfloat16 if precision() == "bf16" else torch.float32


def autocast() -> torch.autocast:
    """The autocast context of a peer."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision() == "bf16")


@dataclass(frozen=True)
class Shape:
    """A Llama with `layers` layers of `width`; its head is tied to the embedding."""

    vocabulary: int
    width: int
    layers: int

    @property
    def body(self) -> int:
        """Weights of the layers' matrices, all applied to every token."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)

    @property
    def inner(self) -> int:
        return round(self.width * 8 / 3 / 32) * 32

    @property
    def parameters(self) -> int:
        return self.body + self.vocabulary * self.width

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.0f} M, V = {self.vocabulary:,}"

    def model(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            intermediate_size=self.inner,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
        return AutoModelForCausalLM.from_config(config).to(device())

    def shared(self, prefix: int, length: int, k: int = K) -> float:
        """Operations of a prompt with K continuations and a prefix computed once."""
        attended = prefix**2 // 2 + k * (length * prefix + length**2 // 2)
        return self._body(prefix + k * length, attended) + self._head(k * length)

    def repeated(
        self,
        prefix: int,
        length: int,
        sequences: int,
        head: int,
        body_times: float = 1.0,
        head_times: float = 1.0,
    ) -> float:
        """Operations of sequences that each carry the prefix.

        The head sees `head` tokens of each; `body_times` and `head_times` repeat the parts.
        """
        whole = prefix + length
        body = self._body(sequences * whole, sequences * whole**2 // 2)
        return body_times * body + head_times * self._head(sequences * head)

    def _body(self, tokens: int, attended: int) -> float:
        """Minimal floating-point operations of the layers, forward and backward.

        `attended` is the number of (query, key) pairs per head and layer.
        """
        return 6 * (tokens * self.body + 2 * attended * self.width * self.layers)

    def _head(self, tokens: int) -> float:
        return 6 * tokens * self.vocabulary * self.width


# About 25 million parameters: GPT-2's vocabulary, and a smaller one with wider layers.
LARGE_VOCABULARY = Shape(50_257, 256, 16)
SMALL_VOCABULARY = Shape(8_192, 512, 7)

PREFIX_AND_LENGTH = [(32, 128), (128, 128), (256, 64), (512, 64)]


def random_groups(
    shape: Shape, prefix: int, length: int, count: int, k: int = K, seed: int = 0
) -> list[Group]:
    """Prompts of exactly `prefix` tokens with K continuations of exactly `length`.

    No continuation is a truncation of another.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(number: int) -> list[int]:
        return torch.randint(1, shape.vocabulary, (number,), generator=generator).tolist()

    return [Group(ids(prefix), [[*ids(length - 1), 0] for _ in range(k)]) for _ in range(count)]
