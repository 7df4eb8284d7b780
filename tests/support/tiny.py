"""The smallest FramePainter checkpoint that has every part, and a dataset that exists only in memory, for training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

UNET = {"model_channels": 32, "channel_mult": [1, 1], "num_res_blocks": [1, 1], "context_dim": 16,
        "transformer_depth": [1, 0], "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 0, 0],
        "num_head_channels": 16}
HEAD_WIDTH = 16
ENCODER = {"projection": 16, "embedding": 16, "stem": (8, 8, 16), "stages": (16, 16)}


def write(path: Path, load: Any, tool: Any) -> Path:
    """A single file of about 1.5 MB with random weights. load: modules of the pack; tool: of tools/."""
    import comfy.ops
    from comfy.clip_model import CLIPVisionModelProjection
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file

    names, encoder, matching = (load(m) for m in ("core.weights.framepainter", "core.models.control_encoder",
                                                  "core.attention.matching"))
    random_model = tool("making.random_model")
    ops = comfy.ops.disable_weight_init
    with torch.device("meta"):
        unet = UNetModel(**{**random_model.svd_unet_settings(UNET), **UNET}, device="meta", dtype=torch.float32,
                         operations=ops)
        shapes = {n: tuple(p.shape) for n, p in unet.state_dict().items()}
        parts = {
            names.UNET: unet,
            names.MATCHING: matching.MatchingBranch(names.spatial_sites(shapes), HEAD_WIDTH),
            names.ENCODER: encoder.ControlEncoder(encoder.EncoderWidths(image=3, out=32, **ENCODER)),
            names.VAE: AutoencoderKL(embed_dim=4, ddconfig={
                "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
                "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}),
            names.CLIP_VISION: CLIPVisionModelProjection({
                "model_type": "clip_vision_model", "hidden_act": "gelu", "hidden_size": 32, "image_size": 32,
                "intermediate_size": 32, "num_attention_heads": 1, "num_channels": 3, "num_hidden_layers": 2,
                "patch_size": 16, "projection_dim": UNET["context_dim"]}, torch.float32, "meta", ops),
        }
    tensors = {prefix + n: random_model.parameter(n, tuple(p.shape), "tiny") for prefix, part in parts.items()
               for n, p in part.state_dict().items() if not n.endswith("position_ids")}
    # Residual branches at a fifth: a network of full random ones multiplies rounding errors.
    for name in tensors:
        if name.endswith(("out_layers.3.weight", "proj_out.weight")):
            tensors[name] *= 0.2
    save_file(tensors, str(path), metadata={"framepainter.format": "1", "framepainter.head_width": str(HEAD_WIDTH)})
    return path


class Sample(NamedTuple):
    """As core/data/shards.py gives them."""

    key: str
    source: Tensor
    target: Tensor
    sketch: Tensor
    coarse: Tensor
    flow: Tensor
    visible: Tensor
    drag_source: Tensor
    drag_target: Tensor
    info: dict


def samples(load: Any, count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[Sample]:
    """Exact procedural pairs."""
    procedural, signals = load("core.data.procedural"), load("core.data.signals")
    generator = torch.Generator().manual_seed(seed)
    scenes = procedural.draw_scenes(count, 2, procedural.SceneSettings(height=height, width=width), generator)
    frames, truth = procedural.render(scenes), procedural.correspondence(scenes, 0, 1)
    points = signals.drag_points(truth.flow, truth.visible, 3, generator)
    sketch = signals.sketch_from_flow(truth.flow)
    coarse = load("core.flow.warp").warp(frames[:, 0], truth.flow) * truth.visible[:, None]
    return [Sample(f"clip_{i}", frames[i, 0], frames[i, 1], sketch[i].contiguous(), coarse[i], truth.flow[i],
                   truth.visible[i], points.source[i], points.target[i], {}) for i in range(count)]
