"""Smooth areas, inverted with and without perturbation by a network trained on noisy clips, through the nodes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCALE = 0.18215  # the host's, of LATENT


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).resolve().parents[3] / "bench" / "sarp.py"
    spec = importlib.util.spec_from_file_location("framepainter_bench_sarp", path)
    module, before = importlib.util.module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before  # tools/ has modules of the names of ComfyUI's own
    return module


@pytest.fixture(scope="module")
def statistic(bench, pack):
    """The statistic of an inverted clip on a ground; SARP's inputs, or None for the clip as it is."""
    nodes = {node.define_schema().node_id.removeprefix("FramePainter"): node for node in pack("nodes.inversion").NODES}
    model = bench.load_network(pack)

    def call(name: str, **inputs):
        nodes[name].hidden = type("Hidden", (), {"unique_id": None})()
        return nodes[name].execute(**inputs).args

    def grey(images):
        return images.movedim(-1, 1)[:, :1] * 2 - 1

    def measure(ground: float, perturbation: dict | None) -> float:
        generator = torch.Generator().manual_seed(11)
        clip, seen = bench.clips(pack("core.data.procedural"), 1, bench.SIDE, generator, ground)
        assert 0.6 < 1 - float(seen.float().mean()) < 0.95  # the ground's share
        images = ((clip[0] + 1) / 2).movedim(1, -1).expand(-1, -1, -1, 3)
        first = key = images[:1]
        if perturbation is not None:
            images, first, key, smooth = call("SARP", images=images, threshold=0.001, noise_scale=0.005, seed=3, **perturbation)
            assert not (smooth.bool() & seen[0, :, 0]).any()  # only the ground is smooth
        noise = bench.AUGMENTATION * torch.randn(1, 1, bench.SIDE, bench.SIDE, generator=generator)
        image = pack("core.inversion.condition").source_condition(*(bench.latents(grey(p) + noise) for p in (key, first)),
                                                                  bench.FRAMES)
        host = pack("host.conditioning")
        positive, _ = host.svd_conditioning(torch.zeros(1, 1, bench.UNET["context_dim"]), image,
                                            host.MicroConds(8, 127, bench.AUGMENTATION))
        latent = call("InvertEDM", model=model, positive=positive, latent={"samples": bench.latents(grey(images)) / SCALE},
                      steps=bench.STEPS)[0]
        return call("Normality", latent=latent)[0]

    with torch.inference_mode():
        yield measure


def test_perturbed_the_statistic_falls_to_a_fifth(statistic):
    """The paper's Table 2 in miniature (2785 to 91)."""
    without, with_noise = statistic(0.0, None), statistic(0.0, {})
    assert without > 30 and with_noise < without / 5, (without, with_noise)


def test_on_white_the_mirror_keeps_more_noise_than_the_clamp(statistic):
    mirrored = statistic(1.0, {})
    clamped = statistic(1.0, {"limits": "clamp (released)", "border": "zero (released)"})
    assert 1.5 * mirrored < clamped, (mirrored, clamped)
