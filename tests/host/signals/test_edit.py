"""A whole edit without a canvas."""

from __future__ import annotations

import comfy.sample
import pytest
import torch


@pytest.mark.parametrize("kind", ["sketch", "drag"])
def test_is_what_the_nodes_make(pack, edit, kind):
    """The example workflow's chain of nodes and core's sampler give the same bits."""
    nodes = {n.define_schema().node_id.removeprefix("FramePainter"): n for n in pack("nodes").NODES}

    def run(name, *args, **inputs):
        return nodes[name].execute(*args, **inputs).args

    loaded, picture = edit.loaded, torch.rand(1, 64, 128, 3, generator=torch.Generator().manual_seed(3))
    if kind == "drag":
        signal = run("DragSignal", picture, "[[20, 20, 60, 30]]")[0][0]
    else:
        strokes = torch.zeros(1, 64, 128)
        strokes[:, 20:24, 10:90] = 1
        signal = run("SketchSignal", mask=strokes)[0][0]
    with torch.inference_mode():
        positive, negative, latent = (part[0] for part in run(
            "Conditioning", loaded.clip_vision, loaded.vae, picture, 128, 64, "exact", 6, 128, 0.02, 4))
        model = run("Guidance", run("ApplyEditSignal", loaded.model, signal, 0.7, 0.0, 1.0, framepainter=loaded.weights)[0],
                    "inverse square")[0]
        samples = latent["samples"]
        out = comfy.sample.sample(model, comfy.sample.prepare_noise(samples, 4), 3, 2.5, "euler", "karras", positive, negative,
                                  samples, disable_pbar=True, seed=4)
        wanted = run("PickEditedFrame", loaded.vae.decode(out))[0]
        module = pack("host.signals.edit")
        found = module.edit_picture(loaded, picture, signal, module.EditSettings(3, 2.5, 0.7, 4))
        assert torch.equal(found, wanted.clamp(0, 1)) and found.std() > 0.01
        odd = module.edit_picture(loaded, picture[:, :50, :117], signal, module.EditSettings(1))
    assert odd.shape == (1, 50, 117, 3)
