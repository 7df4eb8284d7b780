"""The cache of latents: made once, whole, resumable, keyed by all it depends on; and the batches that come from it."""

from __future__ import annotations

import json

import pytest
import torch
from framepainter_tests import tiny
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def cache(pack):
    return pack("core.training.framepainter.cache")


@pytest.fixture(scope="module")
def pairs(pack):
    return tiny.samples(pack, 70, 16, 24)


def encode(sample, number, height, width):
    """Stands for VAE and CLIP: says which example and size it was asked for."""
    h, w = height // 8, width // 8
    return {"latents": torch.full((2, 4, h, w), float(number)), "image": torch.full((4, h, w), -float(number)),
            "embedding": torch.full((1, 3), 0.5 * number)}


def make(cache, folder, pairs, **kw):
    return cache.make_cache(folder, "key", pairs, (16, 24), kw.pop("encode", encode), **kw)


def test_batches_are_what_was_encoded(cache, pairs, tmp_path):
    place = make(cache, tmp_path, pairs)
    assert sorted(p.name for p in place.iterdir()) == ["000000.safetensors", "000001.safetensors", "000002.safetensors",
                                                       "cache.json"]
    examples = cache.CachedExamples(pairs, place, "coarse", (16, 24))
    assert len(examples) == 70
    batch = examples.take(torch.tensor([69, 0, 33]))
    assert batch.latents[:, 0, 0, 0, 0].tolist() == [69, 0, 33] and batch.image.shape == (3, 4, 2, 3)
    assert batch.embedding[:, 0, 0].tolist() == [34.5, 0, 16.5]
    assert torch.equal(batch.flow[1], pairs[0].flow) and torch.equal(batch.visible[2], pairs[33].visible)
    assert batch.control.dtype == torch.uint8
    assert (batch.control[0].float() / 255 - pairs[69].coarse).abs().max() < 0.5 / 255 + 1e-6
    examples.close()


def test_mixed_shows_every_signal_of_every_pair(cache, pairs, tmp_path):
    place = make(cache, tmp_path, pairs)
    mixed = cache.CachedExamples(pairs, place, "mixed", (16, 24))
    assert len(mixed) == 210
    batch = mixed.take(torch.arange(6, 9))
    for row, signal in enumerate(("sketch", "coarse", "drag")):
        one = cache.CachedExamples(pairs, place, signal, (16, 24)).take(torch.tensor([2]))
        assert torch.equal(batch.latents[row], one.latents[0])
        assert (one.control is None) == (signal == "drag") and (one.drag is None) == (signal != "drag")
        if signal == "drag":
            assert torch.equal(batch.drag[row], one.drag[0]) and not batch.control[row].any()
        else:
            assert torch.equal(batch.control[row], one.control[0]) and batch.drag[row].isnan().all()


def test_drags_are_shares_of_the_picture(cache, pairs, tmp_path):
    place = make(cache, tmp_path, pairs[:2])
    drag = cache.CachedExamples(pairs[:2], place, "drag", (16, 24)).take(torch.tensor([1])).drag
    points = torch.cat([pairs[1].drag_source, pairs[1].drag_target], 1)
    assert torch.allclose(drag[0] * torch.tensor([24.0, 16.0, 24.0, 16.0]) - 0.5, points, atol=1e-5)
    fewer = [pairs[0], pairs[1]._replace(drag_source=pairs[1].drag_source[:1], drag_target=pairs[1].drag_target[:1])]
    drag = cache.CachedExamples(fewer, place, "drag", (16, 24)).take(torch.tensor([0, 1])).drag
    assert drag.shape == (2, 3, 4) and drag[1].isnan().all(1).tolist() == [False, True, True]


def test_stopped_and_gone_on_with(cache, pairs, tmp_path):
    """Whole files stay, nothing half is left, and the result is the uninterrupted one byte for byte."""
    class Stop(Exception):
        pass

    asked = []

    def counting(sample, number, height, width):
        asked.append(number)
        return encode(sample, number, height, width)

    def stop_at_40(done, count):
        if done == 40:
            raise Stop

    with pytest.raises(Stop):
        make(cache, tmp_path / "parts", pairs, report=stop_at_40)
    place = tmp_path / "parts" / "cache-key"
    assert [p.name for p in place.iterdir()] == ["000000.safetensors"]
    (place / "000001.safetensors").write_bytes(b"torn")  # as a full disk may leave it
    told = []
    make(cache, tmp_path / "parts", pairs, encode=counting, report=lambda done, count: told.append((done, count)))
    assert asked == list(range(32, 70)) and told[0] == (32, 70) and told[-1] == (70, 70)
    whole = make(cache, tmp_path / "whole", pairs)
    for path in whole.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes()
    assert json.loads((place / "cache.json").read_text())["examples"] == 70


def test_the_key_covers_what_it_depends_on(pack, cache, tmp_path):
    digest = pack("core.digest").digest
    weights = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    key = digest("data", (16, 24), weights)
    assert key == digest("data", (16, 24), dict(reversed(weights.items()))) and len(key) == 16
    others = [digest("other", (16, 24), weights), digest("data", (24, 16), weights),
              digest("data", (16, 24), {**weights, "b": torch.ones(1).half()}),
              digest("data", (16, 24), {**weights, "a": torch.zeros(3, 2)}),
              digest("data", (16, 24), {"a": weights["a"], "c": weights["b"]})]
    assert len({key, *others}) == 6
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "shard-000000.tar").write_bytes(b"one")
    before = cache.dataset_digest(tmp_path)
    (tmp_path / "shard-000000.tar").write_bytes(b"two")
    assert cache.dataset_digest(tmp_path) != before
    with pytest.raises(cache.CacheError, match="is no dataset: it has no dataset.json"):
        cache.dataset_digest(tmp_path / "elsewhere")


@pytest.mark.parametrize("height, width, pixels, multiple, expected", [
    (576, 1024, 0, 64, (576, 1024)), (576, 1024, 576 * 1024, 64, (576, 1024)), (96, 96, 576 * 1024, 16, (96, 96)),
    (576, 1024, 320 * 576, 64, (320, 576)), (1080, 1920, 576 * 1024, 64, (576, 1024)),
])
def test_training_size(cache, height, width, pixels, multiple, expected):
    assert cache.training_size(height, width, pixels, multiple) == expected


def test_sizes_that_do_not_divide(cache):
    with pytest.raises(cache.CacheError, match="are 100 x 90.*multiples of 64. Build the dataset with 128 x 64"):
        cache.training_size(90, 100, 0, 64)


def test_a_smaller_size_scales_everything(cache, pairs, tmp_path):
    """Pictures, flow and points at half the size; flow lengths halve."""
    sample = pairs[0]
    place = cache.make_cache(tmp_path, "key", pairs[:1], (8, 16), encode)
    batch = cache.CachedExamples(pairs[:1], place, "coarse", (8, 16)).take(torch.tensor([0]))
    assert batch.control.shape == (1, 3, 8, 16) and batch.flow.shape == (1, 2, 8, 16) and batch.visible.shape == (1, 8, 16)
    expected = sample.flow[:, ::2][:, :, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22]]
    assert torch.allclose(batch.flow[0, 1], expected[1] / 2) and torch.allclose(batch.flow[0, 0], expected[0] * 16 / 24)
    assert batch.latents.shape == (1, 2, 4, 1, 2)


# ---- drag pictures ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def draw(pack):
    return pack("core.signals.drag").draw_drag


def test_colours_say_the_direction(draw):
    picture = draw(torch.tensor([[8.0, 10.0]]), torch.tensor([[30.0, 10.0]]), 20, 40)
    assert picture[:, 10, 8].tolist() == [1, 0, 0] and picture[:, 10, 30].tolist() == [0, 1, 0]
    assert picture[:, 10, 19].tolist() == [1, 1, 1] and picture[:, 3].max() == 0
    swapped = draw(torch.tensor([[30.0, 10.0]]), torch.tensor([[8.0, 10.0]]), 20, 40)
    assert torch.equal(swapped, picture[[1, 0, 2]])


def test_edges_are_soft_and_areas_right(draw):
    """A disc of radius 2 pixels that does not move: its area is pi r^2, its edge in between."""
    point = torch.tensor([[20.3, 16.6]])
    picture = draw(point, point, 32, 40)
    assert picture[1].sum() == pytest.approx(3.14159 * 4, rel=0.06) and ((picture[1] > 0.1) & (picture[1] < 0.9)).any()
    y, x = torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")
    middle = [(picture[1] * axis).sum() / picture[1].sum() for axis in (x, y)]
    assert middle == [pytest.approx(20.3, abs=0.05), pytest.approx(16.6, abs=0.05)]


def test_points_may_be_outside_or_none(draw):
    assert draw(torch.zeros(0, 2), torch.zeros(0, 2), 8, 8).abs().max() == 0
    picture = draw(torch.tensor([[-50.0, 4.0]]), torch.tensor([[100.0, 4.0]]), 9, 16)
    assert torch.isfinite(picture).all() and picture[:, 4, 5].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"two \(K, 2\) lists; got source \(1, 2\), target \(2, 2\)"):
        draw(torch.zeros(1, 2), torch.zeros(2, 2), 8, 8)


# ---- values that are not finite --------------------------------------------------------------------------------------


def spoiled(name: str, pair: int):
    def encode_badly(sample, number, height, width):
        made = encode(sample, number, height, width)
        return {**made, name: made[name] * torch.nan} if number == pair else made

    return encode_badly


@pytest.mark.parametrize("name, cause", [
    ("latents", "--fp32-vae"), ("image", "--fp32-vae"), ("embedding", "CLIP vision.*--force-fp32")])
def test_what_is_not_finite_is_refused_and_not_kept(pack, cache, pairs, tmp_path, name, cause):
    """The pair and the remedy are named; the next sound attempt goes on after the files before it."""
    message = f"the pair '{pairs[40].key}' cannot be used: inf or NaN in its {name}.*{cause}.*pairs before it"
    with pytest.raises(ValueError, match=message):
        make(cache, tmp_path, pairs, encode=spoiled(name, 40))
    assert sorted(p.name for p in (tmp_path / "cache-key").iterdir()) == ["000000.safetensors"]
    place = make(cache, tmp_path, pairs)
    assert cache.CachedExamples(pairs, place, "coarse", (16, 24)).take(torch.tensor([40])).latents.unique().tolist() == [40]


@pytest.mark.parametrize("name", ["latents", "image", "embedding"])
def test_kept_values_that_are_not_finite_are_made_again(cache, pairs, tmp_path, name):
    """As earlier versions could keep them; the sound files stay."""
    place = make(cache, tmp_path, pairs)
    path = place / "000001.safetensors"
    tensors = load_file(str(path))
    tensors[name][3, 0] = torch.inf
    save_file(tensors, str(path))
    asked = []

    def counting(sample, number, height, width):
        asked.append(number)
        return encode(sample, number, height, width)

    make(cache, tmp_path, pairs, encode=counting)
    assert asked == list(range(32, 64)) and bool(load_file(str(path))[name].isfinite().all())
