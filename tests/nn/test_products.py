"""Products by oneDNN are the products."""

from __future__ import annotations

import pytest
import torch

from weightloom.nn import products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_onednn", [False, True])
def test_they_are_the_products_whatever_the_layout(with_onednn, dtype, monkeypatch):
    if not with_onednn:
        monkeypatch.setattr(products, "_has_onednn", lambda *tensors: False)
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 5, generator=draw, dtype=dtype), torch.randn(7, 5, generator=draw, dtype=dtype)
    wanted = (a.double() @ b.double().t()).to(dtype)
    for left in (a, a.t().contiguous().t(), torch.cat([a, a], 1)[:, :5]):
        for right in (b, b.t().contiguous().t(), torch.cat([b, b], 1)[:, :5]):
            assert torch.allclose(products.product(left, right), wanted, atol=1e-5)
            for times in (1, 100):
                found = products.repeated_product(right, len(left), times)
                assert torch.allclose(found(left), wanted, atol=1e-5)
                assert torch.allclose(found(2 * left), 2 * wanted, atol=1e-5)
