"""Edits of a clip by words, measured against the true edited clip (Video-P2P), in miniature.

    <ComfyUI's python> bench/video_p2p.py --host COMFYUI [--branches fast ...] [--write]

The example workflow video_p2p_edit with the small text-to-image model: each way to keep the source beside the edit, with and
without the local blend. --write puts the table into docs/video_p2p.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402

RESULTS = ROOT / "bench" / "video_p2p.json"
PAGE, BEGIN, END = ROOT / "docs" / "video_p2p.md", "<!-- table: bench/video_p2p.py -->", "<!-- end of table -->"
INPUTS, SIDE = ROOT / "workflows" / "inputs", 192
SOURCE = "a red disc on a green ground"
EDITED, COLOUR, SHAPE, WORDS = "a blue square on a green ground", "blue", "square", "@disc\n@square"
ROW = 3  # of shape_clip_truth.png
STEPS, GUIDANCE, CROSS, MAP_SCALE = 20, 6.0, 0.8, 2
NO_EDIT = "no edit, through the autoencoder"
BRANCHES = ("fast", "null-text", "stored trajectory")
ALIKE = 0.02  # pixels whose source and truth differ by less, of 1, are not to change


def clip_and_truth():
    """The clip and the true edit: (F, H, W, 3) in [0, 1]."""
    import av
    import numpy as np
    import torch
    from PIL import Image

    with av.open(str(INPUTS / "shape_clip.mp4")) as file:
        clip = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float() / 255
    with Image.open(INPUTS / "shape_clip_truth.png") as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
    return clip, torch.stack(sheet[SIDE * ROW: SIDE * (ROW + 1)].split(SIDE, 1))


class Bench:
    """Runs the pack's own nodes and the host's sampler on the clip."""

    def __init__(self, load) -> None:
        self.nodes = {node.define_schema().node_id: node for node in load("nodes").NODES}
        self.read = load("core.evaluation.captions").read_picture
        loaded = load("host.weights.text_to_image").load(ROOT / "models" / "small_text_to_image.safetensors")
        self.clip, self.vae = loaded.clip, loaded.vae
        self.empty = load("host.text").encode(self.clip, "")
        self.video, self.truth = clip_and_truth()
        self.latent = {"samples": self.vae.encode(self.video)}
        (self.model,) = self.call("VideoTextModel", model=loaded.model)
        source, self.edited, self.plan, _ = self.call("PromptEdit", clip=self.clip, source_text=SOURCE, edited_text=EDITED,
                                                      words=WORDS)
        self.start, self.trajectory, self.schedule = self.call("InvertDDIM", model=self.model, positive=source,
                                                               latent=self.latent, steps=STEPS)

    def call(self, name: str, **inputs):
        """The outputs of a node."""
        return self.nodes[f"FramePainter{name}"].execute(**inputs).args

    def frames(self, samples):
        """Decoded frames (F, H, W, 3)."""
        return self.vae.decode(samples).reshape(-1, SIDE, SIDE, 3).clamp(0, 1).cpu()

    def null_text(self) -> tuple:
        """Null-text embeddings and the seconds that they took."""
        begun = time.perf_counter()
        found, _ = self.call("NullText", model=self.model, trajectory=self.trajectory, negative=self.empty, guidance=GUIDANCE,
                             iterations=10)
        return found, time.perf_counter() - begun

    def edit(self, branch: str, blend: bool, null_text) -> dict:
        """One edit and what it is worth. Seconds are those of the sampling alone."""
        from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

        begun = time.perf_counter()
        (model,) = self.call("PromptAttention", model=self.model, plan=self.plan, trajectory=self.trajectory, null_text=null_text,
                             source_branch=branch, cross_steps=CROSS, temporal_steps=0.5, blend=blend, blend_threshold=0.3,
                             map_scale=MAP_SCALE)
        sampler = KSamplerSelect.execute(sampler_name="euler").args[0]
        out = SamplerCustom.execute(model=model, add_noise=False, noise_seed=0, cfg=GUIDANCE, positive=self.edited,
                                    negative=self.empty, sampler=sampler, sigmas=self.schedule, latent_image=self.start).args[0]
        return {**self.values(self.frames(out["samples"])), "seconds": time.perf_counter() - begun}

    def values(self, found) -> dict:
        """Masked PSNR where source and truth are alike, error to the truth elsewhere (of 255), words that are right."""
        same = (self.truth - self.video).abs().amax(-1) < ALIKE
        seen = [self.read(frame.movedim(-1, 0)) for frame in found]
        return {
            "outside": float(-10 * (found - self.video).pow(2).mean(-1)[same].mean().log10()),
            "inside": 255 * float((found - self.truth).abs().mean(-1)[~same].mean()),
            "colour": sum(s is not None and s.colour == COLOUR for s in seen),
            "shape": sum(s is not None and s.shape == SHAPE for s in seen),
            "frames": len(seen),
        }


def measure(load, branches: list[str]) -> list[dict]:
    """Each way, with and without blend; first what leaving all as it is gets, which is the autoencoder's own error."""
    bench = Bench(load)
    decoded = bench.frames(bench.latent["samples"])
    out = [{"way": NO_EDIT, "blend": None, **bench.values(decoded)}]
    for branch in branches:
        null_text, before = bench.null_text() if branch == "null-text" else (None, 0.0)
        for blend in (False, True):
            out.append({"way": branch, "blend": blend, **bench.edit(branch, blend, null_text), "seconds_before": before})
            print(out[-1], flush=True)
    return out


def merged(new: list[dict]) -> list[dict]:
    """The new results and, of ways that were not measured again, the last ones."""
    old = json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []
    ways = {row["way"] for row in new}
    order = (NO_EDIT, *BRANCHES)
    return sorted([*(row for row in old if row["way"] not in ways), *new], key=lambda row: order.index(row["way"]))


def lines(table: list[dict]) -> list[str]:
    """A Markdown table."""
    out = ["| source branch | blend | PSNR outside the edit, dB | error to the true edit, of 255 | colour right | shape right |",
           "| --- | --- | --- | --- | --- | --- |"]
    for row in table:
        blend = {None: "", True: "yes", False: "no"}[row["blend"]]
        out.append(f"| {row['way']} | {blend} | {row['outside']:.2f} | {row['inside']:.1f} | {row['colour']} of {row['frames']} | "
                   f"{row['shape']} of {row['frames']} |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--branches", nargs="*", choices=BRANCHES, default=BRANCHES, help="the others keep their numbers")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    args = parser.parse_args()
    table = merged(measure(tools_pack.open_pack(args.host, cpu=True), args.branches))
    RESULTS.write_text(json.dumps({"steps": STEPS, "guidance": GUIDANCE, "cross_steps": CROSS, "map_scale": MAP_SCALE,
                                   "results": table}, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(lines(table))
    print(text)
    if args.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
