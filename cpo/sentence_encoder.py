"""all-MiniLM-L6-v2 in 8-bit integers, for processors: several times as fast as in fp32.

A batch holds texts of equal length in tokens, so that nothing is padded or masked. Linear layers
are `Int8Linear`, the rest is fp32. A text's embedding does not depend on its batch. Each thread has
batches of its own: threads that share one would wait for each other at every operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cpo.engine.int8 import Int8Linear

TOKENS = 1024  # of a batch: its states stay in the processor's cache


class _Layer:
    """A layer of BERT; 1 / sqrt(head size) is in the queries' weights."""

    def __init__(self, layer: Any, heads: int) -> None:
        attention, self.heads = layer.attention.self, heads
        scale = 1 / math.sqrt(attention.query.weight.shape[0] / heads)
        weights = attention.query.weight * scale, attention.key.weight, attention.value.weight
        biases = attention.query.bias * scale, attention.key.bias, attention.value.bias
        self.inputs = Int8Linear(torch.cat(weights), torch.cat(biases))
        self.mixed = _int8(layer.attention.output.dense)
        self.wide = _int8(layer.intermediate.dense)
        self.narrow = _int8(layer.output.dense)
        self.norms = layer.attention.output.LayerNorm, layer.output.LayerNorm

    def __call__(self, states: Tensor, length: int) -> Tensor:
        """`[T, D]` -> `[T, D]`, texts of `length` tokens one after the other."""
        size = states.shape[1] // self.heads
        parts = self.inputs(states).view(-1, length, 3, self.heads, size)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(-1, -2)).softmax(-1)  # [B, heads, length, length]
        mixed = (weights @ values).transpose(1, 2).reshape(states.shape)
        states = self.norms[0](self.mixed(mixed).add_(states))
        return self.norms[1](self.narrow(F.gelu(self.wide(states))).add_(states))


class Int8Encoder:
    """The embeddings of a sentence-transformers model that is a BERT with mean pooling."""

    @torch.no_grad()
    def __init__(self, encoder: Any) -> None:
        model = encoder[0].auto_model.float()
        self._tokenizer, self._limit = encoder.tokenizer, encoder.max_seq_length
        self._embeddings = model.embeddings
        heads = model.config.num_attention_heads
        self._layers = [_Layer(layer, heads) for layer in model.encoder.layer]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings `[N, D]` float32."""
        if not texts:
            return torch.empty(0, self._embeddings.word_embeddings.embedding_dim)
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._limit)["input_ids"]
        batches = list(_equal_lengths(encoded))
        inputs = (torch.tensor([encoded[row] for row in batch]) for batch in batches)
        with _threads_apart() as each:
            embeddings = torch.cat(list(each(self._embed, inputs)))
        return embeddings[torch.tensor([row for batch in batches for row in batch]).argsort()]

    @torch.inference_mode()
    def _embed(self, ids: Tensor) -> Tensor:
        states = self._embeddings(ids).flatten(0, 1)
        for layer in self._layers:
            states = layer(states, ids.shape[1])
        return F.normalize(states.view(*ids.shape, -1).mean(1), dim=-1)


@contextmanager
def _threads_apart() -> Iterator[Callable[..., Iterator[Tensor]]]:
    """A `map` over as many threads as PyTorch has, with one thread to each call."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _int8(linear: Any) -> Int8Linear:
    return Int8Linear(linear.weight, linear.bias)


def _equal_lengths(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Rows in batches of equal length and at most `TOKENS` tokens, or one row."""

    def length(row: int) -> int:
        return len(encoded[row])

    for tokens, group in groupby(sorted(range(len(encoded)), key=length), length):
        rows, size = list(group), max(1, TOKENS // tokens)
        yield from (rows[start : start + size] for start in range(0, len(rows), size))
