"""Linear layers in 8-bit integers: right to rounding, row by row."""

from __future__ import annotations

import pytest
import torch

from cpo.engine import int8
from cpo.engine.int8 import Int8Linear, quantised_rows


def test_each_row_has_its_scale():
    # Largest magnitudes 127 and 1.27 give steps of 1 and 0.01; a row of zeros stays zeros.
    rows = torch.tensor([[127.0, -63.6, 0.4], [-1.27, 0.5, 0.004], [0.0, 0.0, 0.0]])
    codes, scales = quantised_rows(rows)
    assert codes.dtype == torch.uint8
    assert (codes.int() - int8.ZERO).tolist() == [[127, -64, 0], [-127, 50, 0], [0, 0, 0]]
    torch.testing.assert_close(scales[:2, 0], torch.tensor([1.0, 0.01]))


def layer(seed: int = 0) -> tuple[Int8Linear, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(96, 64, generator=draw), torch.randn(96, generator=draw)
    return Int8Linear(weight, bias), weight, bias


def test_a_product_is_that_of_the_rounded_numbers():
    linear, weight, bias = layer()
    inputs = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    codes, scales = quantised_rows(inputs)
    rounded = (codes.double() - int8.ZERO) * scales
    exact = rounded @ (linear.codes.double() * linear.scales[:, None]).T + bias
    torch.testing.assert_close(linear(inputs), exact.float(), rtol=1e-5, atol=1e-5)
    # Against the true product: an error of a step's 12th root in each of 64 terms, weights above
    # all: sqrt(64) * (3 / 63) / sqrt(12) = 0.11 of a standard deviation of 8.
    error = (linear(inputs) - (inputs @ weight.T + bias)).std()
    assert 0.02 < error < 0.2


def test_sums_do_not_saturate():
    # The largest codes everywhere: 16 bits would not hold two products of 8 bits.
    linear = Int8Linear(torch.ones(16, 512), torch.zeros(16))
    inputs = torch.ones(8, 512)
    torch.testing.assert_close(linear(inputs), torch.full((8, 16), 512.0))
    torch.testing.assert_close(linear(-inputs), torch.full((8, 16), -512.0))


@pytest.mark.skipif(not int8.has_kernel(), reason="there is one path only")
def test_without_the_kernel_values_are_the_same(monkeypatch):
    inputs = torch.randn(50, 64)
    fast = layer()[0](inputs)
    monkeypatch.setattr(int8, "has_kernel", lambda: False)
    torch.testing.assert_close(layer()[0](inputs), fast, rtol=1e-6, atol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    linear = layer()[0]
    inputs = torch.randn(50, 64)
    large = torch.cat([inputs[:5], 1000 * inputs[5:]])
    assert torch.equal(linear(inputs)[:5], linear(large)[:5])
