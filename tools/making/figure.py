"""Redraw the README's figures of the small models.

    <ComfyUI's python> tools/making/figure.py --host COMFYUI
        docs/images/small_models.png: edits of held-out scenes
    <ComfyUI's python> tools/making/figure.py --host COMFYUI --frames FRAME ...
        docs/images/paint_and_propagate.png: "Edited frames" of that example, beside its video and the truth
    <ComfyUI's python> tools/making/figure.py --host COMFYUI --carry
        docs/images/carry.jpg and carry.webp: the clip of carry_real_clip and what commands/carry.py makes of its edited frame
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import pack as tools_pack  # noqa: E402
import small_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
SIGNALS = {"sketch": "sketch", "drag": "drag points (red to green)", "coarse": "coarse edit"}
SCENES, SEED = 2, 4  # no training seed is as small
STEPS, CFG, STRENGTH = 25, 2.0, 1.0
ENLARGED = 2
KEYFRAME, SHOWN_FRAMES = 8, (0, 4, 8, 12, 15)
FRAME_MS, KEYFRAME_MS, FILM_WIDTH = 100, 900, 896  # of the animation: each frame's time, the edited one's, and pixels


def edit(load: Callable[[str], Any], signal: str, clips: Any, signals: dict, i: int) -> Any:
    """One edited picture, (3, H, W), by the nodes' own parts."""
    import comfy.sample
    import torch

    loaded = load("host.weights.loading").load(small_model.MODELS / f"framepainter_small_{signal}.safetensors", None, None, None)
    with torch.inference_mode():
        side = small_model.SIDE
        prepared = load("host.conditioning").edit_conditioning(
            loaded.clip_vision, loaded.vae, clips[i:i + 1, 0].movedim(1, -1), side, side, 6, 128, 0.02, 0)
        if signal == "drag":
            model = load("host.signals.drag").apply_drag(loaded.model, signals["drag"][i:i + 1], STRENGTH, 0.0, 1.0)
        else:
            picture = (signals["control"][i:i + 1].float() / 255).movedim(1, -1)
            control = load("host.signals.control")
            model = control.apply_control(loaded.model, loaded.weights.encoder, picture, STRENGTH, 0.0, 1.0, "release")
        model = load("host.sampling.guidance").set_guidance(model, "inverse square")
        empty = prepared.latent["samples"]
        latent = comfy.sample.sample(model, comfy.sample.prepare_noise(empty, i), STEPS, CFG, "euler", "karras",
                                     prepared.positive, prepared.negative, empty, disable_pbar=True, seed=i)
        return loaded.vae.decode(latent)[-1].movedim(-1, 0)


def painted(load: Callable[[str], Any], frames: list[Path]) -> None:
    """The example's video, what it became, and the truth, frame by frame."""
    import av
    import torch
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor
    from torchvision.utils import save_image

    inputs = ROOT / "workflows" / "inputs"
    with av.open(str(inputs / "paint_clip.mp4")) as file:
        video = [pil_to_tensor(f.to_image()) for f in file.decode(video=0)]
    truth = pil_to_tensor(Image.open(inputs / "paint_clip_truth.png").convert("RGB")).split(video[0].shape[-1], -1)
    edited = [pil_to_tensor(Image.open(path).convert("RGB")) for path in sorted(frames)]
    columns = list(zip(video, edited, truth, strict=True))
    sheet = load("core.sheet").contact_sheet(
        [f"frame {i + 1}" for i in range(len(columns))],
        [(name, [c[row].movedim(0, -1) / 255 for c in columns]) for row, name in enumerate(("video", "edited", "truth"))])
    save_image(sheet.movedim(-1, 1), IMAGES / "paint_and_propagate.png")
    print(torch.stack([(c[1] / 255 - c[2] / 255).pow(2).mean() for c in columns]).tolist())


def carried(load: Callable[[str], Any]) -> None:
    """The real clip, and the one edited frame carried to the others: five frames as a sheet, and all of them moving."""
    import subprocess
    import tempfile

    import torch
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    inputs = ROOT / "workflows" / "inputs"
    with tempfile.TemporaryDirectory() as place:
        given = ["--video", inputs / "carry_clip.mp4", "--keyframe", KEYFRAME, inputs / "carry_clip_edited.png", "--flow", "own"]
        command = [sys.executable, ROOT / "commands" / "carry.py", *given, "--out", place]
        subprocess.run(list(map(str, command)), check=True)
        edited = [pil_to_tensor(Image.open(path)).movedim(0, -1) / 255 for path in sorted(Path(place).glob("*.png"))]
    video = load("core.video.reading").read(inputs / "carry_clip.mp4").frames
    names = [f"frame {n}" + (", edited" if n == KEYFRAME else "") for n in SHOWN_FRAMES]
    rows = [(name, [frames[n] for n in SHOWN_FRAMES]) for name, frames in (("video", video), ("carried", edited))]
    sheet = load("core.sheet").contact_sheet(names, rows)[0]
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(IMAGES / "carry.jpg", quality=85)
    film(load, video, edited)


def film(load: Callable[[str], Any], video: Any, edited: Any) -> None:
    """Both clips side by side, forwards and back, as an animation that stops at the edited frame."""
    import torch
    from PIL import Image

    order = [*range(len(edited)), *range(len(edited) - 2, 0, -1)]
    pictures = []
    for n in order:
        names = [f"video, frame {n}", f"frame {n}, edited" if n == KEYFRAME else f"frame {n}, follows"]
        sheet = load("core.sheet").contact_sheet(names, [("", [video[n], edited[n]])])[0]
        picture = Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())
        pictures.append(picture.resize((FILM_WIDTH, round(picture.height * FILM_WIDTH / picture.width)), Image.Resampling.LANCZOS))
    times = [KEYFRAME_MS if n == KEYFRAME else FRAME_MS for n in order]
    pictures[0].save(IMAGES / "carry.webp", save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=70, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--frames", type=Path, nargs="+", help="the example's saved frames")
    parser.add_argument("--carry", action="store_true", help="draw carry.jpg")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    if options.carry:
        carried(load)
    elif options.frames:
        painted(load, options.frames)
    else:
        small_models(load)


def small_models(load: Callable[[str], Any]) -> None:
    """One row a signal: two scenes, each with its signal, edit and truth."""
    import torch
    from PIL import Image
    from torch.nn.functional import interpolate

    procedural, contact, sheets = (load(f"core.{m}") for m in ("data.procedural", "data.contact_sheet", "evaluation.sheet"))
    rows = []
    for number, (signal, name) in enumerate(SIGNALS.items()):
        scenes = procedural.draw_scenes(SCENES, 2, procedural.SceneSettings(**{**small_model.SCENES, "sprites": (1, 1)}),
                                        torch.Generator().manual_seed(SEED + number))
        clips = procedural.render(scenes)
        truth = procedural.correspondence(scenes, 0, 1)
        signals = small_model.signal_of(load, signal, scenes, clips, truth, torch.Generator().manual_seed(0))
        pictures = []
        for i in range(SCENES):
            if signal == "drag":
                points = signals["drag"][i][~signals["drag"][i].isnan().any(1)] * small_model.SIDE - 0.5
                shown = contact.drags_on(clips[i, 0], points[:, :2], points[:, 2:])
            else:
                shown = (signals["control"][i].float() / 255).expand(3, -1, -1)
            pictures += [clips[i, 0], shown, edit(load, signal, clips, signals, i), clips[i, 1]]
        large = interpolate(torch.stack(pictures), scale_factor=ENLARGED, mode="bicubic").clamp(0, 1)
        rows.append((name, list(large.movedim(1, -1))))
    sheet = sheets.contact_sheet(["picture", "signal", "edit", "true picture"] * SCENES, rows)[0]
    Image.fromarray((sheet * 255).round().byte().numpy()).save(IMAGES / "small_models.png", optimize=True)


if __name__ == "__main__":
    main()
