"""The small models' autoencoder behind the host's VAE socket."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module")
def small(pack):
    return pack("core.models.small_autoencoder")


@pytest.fixture(scope="module")
def network(small):
    torch.manual_seed(0)
    return small.SmallAutoencoder((8, 12, 16), blocks=2).eval()


def test_is_rebuilt_from_its_shapes(small, network):
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    again = small.from_shapes(shapes)
    assert {name: tuple(t.shape) for name, t in again.state_dict().items()} == shapes
    assert small.MARK in shapes


def test_a_picture_of_one_colour_keeps_its_colour_in_the_latents(network):
    """No layer normalises, so a brighter picture is another latent: what small AutoencoderKLs cannot do."""
    with torch.no_grad():
        dark, light = (network.encode(torch.full((1, 3, 32, 48), v)) for v in (-0.5, 0.5))
    assert dark.shape == (1, 4, 4, 6)
    assert (dark - light).abs().mean() > 0.01


def test_the_hosts_vae_gives_the_same_numbers(pack, network):
    tensors = {name: t.clone() for name, t in network.state_dict().items()}
    vae = pack("host.weights.building").build_vae(tensors)
    torch.manual_seed(1)
    pixels = torch.rand(2, 32, 48, 3)
    with torch.inference_mode():
        latents = vae.encode(pixels)
        decoded = vae.decode(latents)
    with torch.no_grad():
        expected = network.encode(pixels.movedim(-1, 1) * 2 - 1)
        pictures = ((network.decode(expected) + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert torch.allclose(latents.float(), expected, atol=1e-5)
    assert torch.allclose(decoded.float(), pictures, atol=1e-5)
    assert set(vae.get_sd()) == set(tensors)
