"""Attention injection against the materialised maps of the paper's equations, and its record."""

from __future__ import annotations

import pytest
import torch

T, L, N, D = 3, 37, 2, 8


@pytest.fixture(scope="module")
def core(pack):
    return pack("core.attention.injection")


@pytest.fixture(scope="module")
def tensors():
    generator = torch.Generator().manual_seed(0)
    q, k, v, q0, k0 = (torch.randn(T, L, N * D, generator=generator) for _ in range(5))
    # Half of the queries nearly agree, so that both sides of a threshold are met.
    q0[:, ::2], k0 = q[:, ::2] + 0.1 * q0[:, ::2], k + 0.1 * k0
    return q, k, v, q0, k0


def inject(core, tensors, thresholds, change=None, stay=None, **settings):
    q, k, v, q0, k0 = tensors
    return core.injected_attention(q, k, v, core.SourceQK(q0, k0), N, thresholds, core.Masks(change, stay), **settings)


def maps(q, k):
    q, k = (x.unflatten(-1, (N, D)).transpose(1, 2) for x in (q, k))
    return torch.softmax(q @ k.transpose(-1, -2) / D**0.5, -1)  # (T, N, L, L)


def materialised(q, k, v, q0, k0, thresholds, change=None, stay=None):
    """Equations 7 and 8, whole maps."""
    own, source = maps(q, k), maps(q0, k0)
    difference = (own - source).abs().mean(1).sum(-1).clamp(0, 2) / 2
    weight = torch.where(difference >= torch.tensor(thresholds)[:, None], 1.0, difference)
    weight = weight if change is None else torch.maximum(weight, change)
    weight = weight if stay is None else torch.minimum(weight, 1 - stay)
    mixed = (1 - weight)[:, None, :, None] * source + weight[:, None, :, None] * own
    out = mixed @ v.unflatten(-1, (N, D)).transpose(1, 2)
    return out.transpose(1, 2).flatten(2), difference, weight


@pytest.mark.parametrize("chunk_bytes", [1, 7 * 3 * 4 * N * L, 1 << 20])  # a query at a time, 7, all
def test_is_the_materialised_form(core, tensors, chunk_bytes):
    thresholds = [0.1, 0.3, 2.0]
    expected = materialised(*tensors, thresholds)
    assert 0.1 < float((expected[2] == 1).float().mean()) < 0.9
    found = inject(core, tensors, thresholds, chunk_bytes=chunk_bytes)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-6)


def test_two_fused_attentions_are_the_same(core, tensors):
    def attention(q, k, v, heads):
        return (maps(q, k) @ v.unflatten(-1, (N, D)).transpose(1, 2)).transpose(1, 2).flatten(2)

    def total_variation(q, k, q0, k0, heads):
        return (maps(q, k) - maps(q0, k0)).abs().sum(-1).mean(1) / 2

    stay = torch.rand(1, L)
    found = core.injected_attention_fused(*tensors[:3], core.SourceQK(*tensors[3:]), N, [0.2] * T, attention, total_variation,
                                          core.Masks(stay=stay))
    for a, b in zip(found, materialised(*tensors, [0.2] * T, stay=stay), strict=True):
        assert torch.allclose(a, b, atol=2e-6)


def test_masks_force_either_map(core, tensors):
    q, k, v, q0, k0 = tensors
    ones = torch.ones(1, L)
    own = (maps(q, k) @ v.unflatten(-1, (N, D)).transpose(1, 2)).transpose(1, 2).flatten(2)
    source = (maps(q0, k0) @ v.unflatten(-1, (N, D)).transpose(1, 2)).transpose(1, 2).flatten(2)
    for thresholds in ([0.0] * T, [2.0] * T):
        assert torch.allclose(inject(core, tensors, thresholds, change=ones).out, own, atol=2e-6)
        assert torch.allclose(inject(core, tensors, thresholds, stay=ones).out, source, atol=2e-6)
    assert torch.allclose(inject(core, tensors, [0.0] * T).out, own, atol=2e-6)


def test_equal_maps_have_no_difference(core, tensors):
    q, k, v, _, _ = tensors
    found = inject(core, (q, k, v, q, k), [0.35] * T)
    assert found.difference.max() == 0 and found.weight.max() == 0


def test_no_map_of_all_tokens_is_ever_made(core):
    """At 4096 tokens a map is 67 MB a head; nothing larger than the chunk may be made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.untyped_storage().nbytes())
            return out

    q = torch.randn(1, 4096, 16)
    with Watch():
        core.injected_attention(q, q, q, core.SourceQK(q * 1.1, q), 1, [0.35], chunk_bytes=8 << 20)
    assert 4 << 20 < largest <= 8 << 20


def test_half_precision_inputs(core, tensors):
    halves = [x.bfloat16() for x in tensors]
    found = inject(core, halves, [0.35] * T)
    assert found.out.dtype == torch.bfloat16
    expected = materialised(*(x.float() for x in halves), [0.35] * T)
    assert torch.allclose(found.out.float(), expected[0], atol=2e-2)
    assert torch.allclose(found.difference, expected[1], atol=1e-5)


def test_thresholds_do_not_reach_the_last(core):
    assert core.frame_thresholds(0.2, 0.6, 5) == pytest.approx([0.2, 0.28, 0.36, 0.44, 0.52])


def test_temporal_attention_is_the_sources_but_where_a_change_is_asked_for(core):
    """Each frame of each place on its own."""
    places, generator = 6, torch.Generator().manual_seed(2)
    q, k, v, q0, k0 = (torch.randn(places, T, N * D, generator=generator) for _ in range(5))

    def attention(q, k):
        return core.apply_probabilities(core.temporal_probabilities(q, k, N), v)

    own, source, found = attention(q, k), attention(q0, k0), core.temporal_probabilities(q0, k0, N)
    change = torch.rand(T, places, generator=generator)
    mixed = core.inject_temporal(found, v, change, lambda: own)
    for frame in range(T):
        for place in range(places):
            share = change[frame, place]
            assert torch.allclose(mixed[place, frame], (1 - share) * source[place, frame] + share * own[place, frame], atol=1e-6)
    assert torch.equal(core.inject_temporal(found, v, None, lambda: pytest.fail("not asked for")), source)
    assert torch.allclose(core.inject_temporal(found, v, torch.ones(1, places), lambda: own), own)


def test_stage_bounds(core):
    assert core.stage_bounds(0.5, 0.8, 7) == (3, 5) and core.stage_bounds(0.25, 0.75, 7) == (1, 5)


def test_own_probabilities_are_plain_attention(core):
    q, k, v = (torch.randn(11, 4, N * D) for _ in range(3))
    found = core.apply_probabilities(core.temporal_probabilities(q, k, N), v)
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.unflatten(-1, (N, D)).transpose(1, 2) for x in (q, k, v)))
    assert torch.allclose(found, expected.transpose(1, 2).flatten(2), atol=1e-6)


def test_sites_of_the_published_network(pack):
    """Section 4.2: the second stage keeps layers at a quarter and smaller; upwards only as many as downwards."""
    import json
    from pathlib import Path

    names = pack("core.weights.diffusers_svd")
    full = json.loads((Path(__file__).parents[2] / "golden" / "full_size_unet.json").read_text())
    shapes = full if isinstance(next(iter(full.values())), list) else next(iter(full.values()))
    try:
        layout = names.layout_from_comfy(shapes)
    except ValueError:
        layout = names.layout_from_diffusers(shapes)
    sites = pack("core.attention.sites").attention_sites(layout)
    assert [s.scale for s in sites] == [1, 1, 2, 2, 4, 4, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1]
    coarse = pack("core.attention.sites").coarse_sites(sites, 4)
    assert [s.path in coarse for s in sites] == [False] * 4 + [True] * 5 + [False] * 7


# ---- record ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["RAM", "disk"])
def folder(request, tmp_path):
    return tmp_path / "record" if request.param == "disk" else None


def test_a_record_keeps_what_fits(pack, folder):
    module = pack("core.attention.record")
    features = {"q|a": torch.randn(2, 5, 8), "p|b": torch.randn(3, 4)}
    record = module.AttentionRecord(folder, torch.float32, 2 * 92 * 4, "source")
    assert record.put(0, features) and record.put(1, features) and not record.put(2, features)
    assert record.get(2) is None and record.bytes == 2 * 92 * 4
    assert all(torch.equal(record.get(1)[name], t) for name, t in features.items()) and set(record.get(1)) == set(features)
    record.close()
    assert record.get(0) is None and (folder is None or not folder.exists())


def test_sixteen_bit_takes_half(pack, folder):
    record = pack("core.attention.record").AttentionRecord(folder, torch.float16, 80, "source")
    assert record.put(0, {"q|a": torch.randn(40)}) and record.bytes == 80
    assert record.get(0)["q|a"].dtype == torch.float16


def test_files_go_with_the_record(pack, tmp_path):
    record = pack("core.attention.record").AttentionRecord(tmp_path / "record", torch.float16, 800, "source")
    record.put(0, {"q|a": torch.randn(40)})
    assert len(list((tmp_path / "record").iterdir())) == 1
    del record
    import gc

    gc.collect()
    assert not (tmp_path / "record").exists()


def test_a_full_disk_deletes_what_was_written(pack, tmp_path, monkeypatch):
    module = pack("core.attention.record")
    record = module.AttentionRecord(tmp_path / "record", torch.float32, 1 << 20, "source")
    record.put(0, {"q|a": torch.randn(40)})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(module.RecordError, match="No space left"):
        record.put(1, {"q|a": torch.randn(40)})
    assert not (tmp_path / "record").exists()


def test_a_record_that_vanished_is_named(pack, tmp_path):
    module = pack("core.attention.record")
    record = module.AttentionRecord(tmp_path / "record", torch.float32, 1 << 20, "source")
    record.put(0, {"q|a": torch.randn(40)})
    next((tmp_path / "record").iterdir()).unlink()
    with pytest.raises(module.RecordError, match="cannot be read"):
        record.get(0)["q|a"]


def test_average_difference(pack):
    difference, sites = pack("core.attention.difference"), pack("core.attention.sites")
    half = torch.zeros(2, 8)
    half[:, :4] = 1.0
    found = [(half * 3, half, 3, (2, 4), sites.Site("a", "down", 2, 1)),
             (half * 0, half, 3, (2, 4), sites.Site("b", "mid", 0, 2))]
    mask = difference.average(found, "all", "difference", 16, 32)
    assert mask.shape == (2, 16, 32) and torch.allclose(mask[:, 0], torch.full((2, 32), 0.5)) and mask[:, -1].max() == 0
    assert float(difference.average(found, "third on the way down", "difference", 16, 32).max()) == 1.0
    assert difference.average(found, "up", "weight", 16, 32) is None
    assert difference.colours(mask).shape == (2, 16, 32, 3)
