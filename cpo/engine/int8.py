"""Linear layers in 8-bit integers, for processors: each row of inputs has a scale of its own, so
that a value does not depend on its batch.

Integer sums are exact, so that results do not depend on the instructions in use.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

# 7 bits: without VNNI instructions, two products of 8 bits are summed in 16, which 255 * 127 * 2
# would exceed and 255 * 63 * 2 does not.
LARGEST_WEIGHT = 63
LARGEST_INPUT = 127
ZERO = 128  # the byte that stands for 0


def quantised_rows(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to 255 steps of its own.

    Args:
        inputs: `[T, D]` float32.

    Returns:
        codes: `[T, D]` uint8, `inputs / scales` rounded, plus `ZERO`.
        scales: `[T, 1]` float32, the row's largest magnitude / 127.
    """
    # Neither aminmax nor an infinity norm: both take longer than the matrix product.
    largest = torch.maximum(inputs.amax(-1, keepdim=True), -inputs.amin(-1, keepdim=True))
    scales = largest.clamp(min=torch.finfo(torch.float32).tiny * LARGEST_INPUT) / LARGEST_INPUT
    codes = inputs.mul(scales.reciprocal()).round_().to(torch.int8)
    return codes.view(torch.uint8).bitwise_xor_(ZERO), scales  # the xor adds 128 to a signed byte


class Int8Linear:
    """`inputs @ weight.T + bias` with int8 products; `weight` `[N, D]`, `bias` `[N]`, float32."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.bias = bias
        self.scales = weight.abs().amax(1).clamp(min=1e-12) / LARGEST_WEIGHT  # per output
        self.codes = (weight / self.scales[:, None]).round().to(torch.int8)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._packed = torch.ops.onednn.qlinear_prepack(self.codes, None) if has_kernel() else None

    def __call__(self, inputs: Tensor) -> Tensor:
        """`[T, D]` float32 -> `[T, N]` float32."""
        codes, scales = quantised_rows(inputs)
        return torch.addcmul(self.bias, self._product(codes), scales)

    def _product(self, codes: Tensor) -> Tensor:
        if self._packed is None:  # the same integers as floats: right, not fast
            return (codes.float() - ZERO) @ self.codes.float().T * self.scales
        return torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, ZERO, self._packed, self.scales, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "none",
        )  # fmt: skip


def has_kernel() -> bool:
    """Whether oneDNN multiplies bytes here: on x86; elsewhere it may fall back on plain loops."""
    return torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
