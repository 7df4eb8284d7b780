"""A checksum of large tensors that no changed value escapes."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def checksum(pack):
    return pack("core.digest").checksum


@pytest.mark.parametrize("count", [1, 2, 8191, 8192, 8193, 20_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64,
                                   torch.bool])
def test_every_value_counts(checksum, count, dtype):
    """One flipped bit at each of some places, the ends of rows among them."""
    places = sorted({p for p in (0, count // 3, count - 2, count - 1, 4095, 4096, 8191, 8192) if 0 <= p < count})
    values = (torch.arange(count) % 2).to(dtype)
    found = {checksum(values)}
    for place in places:
        changed = values.clone()
        changed.view(torch.uint8)[place * values.element_size()] ^= 1
        found.add(checksum(changed))
    assert len(found) == 1 + len(places)


def test_places_signs_and_ends_count(checksum):
    values = torch.randn(30_000, generator=torch.Generator().manual_seed(0))
    found = [values, values.roll(1), values.roll(8192), values.flip(0), -values, torch.cat([values, values.new_zeros(2)]),
             values.reshape(2, -1).T.reshape(-1)]
    exchanged = values.clone()
    exchanged[[3, 8195]] = values[[8195, 3]]
    signs = values.clone()
    signs[[1, 5]] *= -1
    found += [exchanged, signs]
    assert len({checksum(v) for v in found}) == len(found)


def test_the_precision_of_equal_values_does_not_count(checksum):
    values = torch.randn(9000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert checksum(values) == checksum(values.float())
    assert checksum(values.half().float()) == checksum(values.half())


def test_how_a_tensor_lies_in_memory_does_not_count(checksum):
    values = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    assert checksum(values.T.contiguous().T) == checksum(values)


def test_it_is_the_sum_that_it_says(checksum):
    """Against whole numbers of any length in Python."""
    import hashlib

    import numpy as np

    values = torch.randn(4096 + 6, generator=torch.Generator().manual_seed(1))
    factors = [int(f) | 1 for f in np.frombuffer(hashlib.shake_256(b"framepainter").digest(8 * 4096), "<i8")]
    words = np.frombuffer(values.numpy().tobytes(), "<i4").tolist()
    sums = [sum(w * f for w, f in zip(words[i:i + 4096], factors, strict=False)) % 2**64 for i in (0, 4096)]
    assert checksum(values) == hashlib.sha256(b"4102 values" + np.array(sums, "<u8").tobytes()).digest()
