"""Write a FramePainter checkpoint with random weights: with every part of a real one, but small and untrained.

    <host's python> tools/making/random_model.py --host COMFYUI_DIR OUT.safetensors

For tests, and for showing that an installation works before any real weights are there. The edits it makes are noise.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import pack as tools_pack  # noqa: E402

SMALL = {"model_channels": 64, "channel_mult": [1, 2, 2, 2], "num_res_blocks": [2, 2, 2, 2], "context_dim": 64}
FULL = {"model_channels": 320, "channel_mult": [1, 2, 4, 4], "num_res_blocks": [2, 2, 2, 2], "context_dim": 1024}


def svd_unet_settings(size: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's settings for an SVD UNet of the given widths."""
    return {**size, "image_size": 32, "in_channels": 8, "out_channels": 4, "use_spatial_transformer": True,
            "legacy": False, "num_classes": "sequential", "adm_in_channels": 768, "use_linear_in_transformer": True,
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "use_temporal_resblock": True,
            "use_temporal_attention": True, "extra_ff_mix_layer": True, "use_spatial_context": True,
            "merge_strategy": "learned_with_images", "merge_factor": 0.0, "video_kernel_size": [3, 1, 1],
            "num_heads": -1, "num_head_channels": 64}


def parameter(name: str, shape: tuple[int, ...], salt: str) -> Any:
    """A random parameter: matrices at 1/sqrt(fan in), gains about 1, biases about 0. Same name and salt, same numbers."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{salt}/{name}".encode()))
    n = torch.randn(shape, generator=generator)
    if name.endswith("mix_factor"):
        return 0.5 * n
    if len(shape) >= 2:
        return n / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * n if name.endswith(".weight") else 0.1 * n


def shapes(size: dict[str, Any], load: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a single file: UNet, matching attention, control encoder, VAE, CLIP vision."""
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPVisionModelProjection
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    names = load("core.weights.framepainter")
    encoder = load("core.models.control_encoder")
    matching = load("core.attention.matching")
    with torch.device("meta"):
        ops = comfy.ops.disable_weight_init
        unet = UNetModel(**svd_unet_settings(size), device="meta", dtype=torch.float32, operations=ops)
        unet_shapes = {n: tuple(p.shape) for n, p in unet.state_dict().items()}
        widths = encoder.EncoderWidths(3, 128, 256, (64, 64, 128), (128, 256), size["model_channels"])
        vae = AutoencoderKL(embed_dim=4, ddconfig={
            "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0})
        clip = CLIPVisionModelProjection({
            "model_type": "clip_vision_model", "hidden_act": "gelu", "hidden_size": 64, "image_size": 224,
            "intermediate_size": 128,
            "num_attention_heads": 1, "num_channels": 3, "num_hidden_layers": 3, "patch_size": 32,
            "projection_dim": size["context_dim"]}, torch.float32, "meta", ops)
        parts = {
            names.UNET: unet,
            names.MATCHING: matching.MatchingBranch(names.spatial_sites(unet_shapes), 64, device="meta"),
            names.ENCODER: encoder.ControlEncoder(widths, device="meta"),
            names.VAE: vae,
            names.CLIP_VISION: clip,
        }
    return {prefix + n: tuple(p.shape) for prefix, part in parts.items() for n, p in part.state_dict().items()
            if not n.endswith("position_ids")}


def write(path: Path, load: Any, size: dict[str, Any] | None = None, salt: str = "random") -> Path:
    """Write the checkpoint, fp32. `load` imports modules of the pack (see tools/pack.py)."""
    from safetensors.torch import save_file

    tensors = {n: parameter(n, s, salt) for n, s in shapes(size or SMALL, load).items()}
    with load("core.atomic").replacing(path) as partial:
        save_file(tensors, str(partial), metadata={"framepainter.format": "1"})
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    options = parser.parse_args()
    print(write(options.out.resolve(), tools_pack.open_pack(options.host.resolve())))


if __name__ == "__main__":
    main()
