"""What a sketch edit takes in memory at 1024 x 576, counted without a card and without arithmetic.

    <ComfyUI's python> bench/edit_memory.py --host COMFYUI [--write]

Networks of the real sizes made of tensors without contents, in 16 bit: bytes of the weights, and the most bytes of tensors that
exist at once in a guided step and in decoding both frames. What kernels allocate for themselves is not seen. --write puts the
table into README.md. A minute.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making"), str(ROOT / "bench")]
import arithmetic  # noqa: E402
import guided_step  # noqa: E402
import motion_lora  # noqa: E402
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

PAGE, MARK = ROOT / "README.md", "<!-- table: bench/edit_memory.py -->"
EDIT = "+ matching and control (release)"
AUTOENCODER = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
               "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
FRAMES = 2


def weight_bytes(parameters: Iterable[Any]) -> int:
    return sum(p.numel() * 2 for p in parameters)


def step(load: Callable[[str], Any], rows: dict[str, int]) -> int:
    """Bytes alive in a guided step; notes the weights that it uses."""
    import torch

    parts = guided_step.networks(load, "full", torch.float16, lambda name, shape, salt: arithmetic.fake(shape))
    for name, part in zip(("UNet", "matching attention", "control encoder"), parts, strict=True):
        rows[name] = weight_bytes(part.model.parameters())
    control = torch.empty(1, *guided_step.PIXELS["full"], 3)
    known = [p for part in parts for p in part.model.parameters()]
    live = motion_lora.live_bytes(known)
    count = arithmetic.operations

    def counted(run: Callable[[], Any]) -> float:
        with live:
            run()
        return 0.0

    arithmetic.operations = counted
    try:
        arithmetic._guided(guided_step.variants(load, *parts, control)[EDIT])
    finally:
        arithmetic.operations = count
    return live.peak


def decoding(rows: dict[str, int]) -> int:
    """Bytes alive while both frames are decoded; notes the weights of SVD's autoencoder."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    places = ("comfy.ldm.modules.diffusionmodules.model.Encoder", "comfy.ldm.modules.temporal_ae.VideoDecoder")
    encoder, decoder = ({"target": place, "params": dict(settings)} for place, settings in
                        zip(places, (AUTOENCODER, {**AUTOENCODER, "video_kernel_size": [3, 1, 1], "alpha": 0.0}), strict=True))
    regular = {"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        engine = AutoencodingEngine(regularizer_config=regular, encoder_config=encoder, decoder_config=decoder).eval()
    finally:
        torch.set_default_dtype(usual)
    rows["VAE"] = weight_bytes(engine.parameters())
    height, width = (side // 8 for side in guided_step.PIXELS["full"])
    with motion_lora.live_bytes(engine.parameters()) as live:
        engine.decode(torch.empty(FRAMES, 4, height, width, dtype=torch.float16))
    return live.peak


def image_encoder(host: Path) -> int:
    """Bytes of the weights of SVD's CLIP image encoder."""
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPVisionModelProjection

    config = json.loads((host / "comfy" / "clip_vision_config_h.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        return weight_bytes(CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.disable_weight_init).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    options = parser.parse_args()
    sys.path.insert(0, str(options.host.resolve()))
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True  # as on a card
    load = tools_pack.open_pack(options.host.resolve(), cpu=True)
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    weights: dict[str, int] = {}
    with FakeTensorMode(), torch.inference_mode():
        stepped, decoded = step(load, weights), decoding(weights)
    weights["CLIP image encoder"] = image_encoder(options.host)
    running = sum(weights[name] for name in ("UNet", "matching attention", "control encoder"))
    rows = {**{f"{name}, weights": size for name, size in weights.items()},
            "the most at once: a guided step, with its weights": running + stepped,
            "the most at once: both frames decoded, with the VAE's weights": weights["VAE"] + decoded}
    lines = ["| part | GB |", "| --- | --- |", *(f"| {name} | {size / 1e9:.2f} |" for name, size in rows.items())]
    print("\n".join(lines))
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
