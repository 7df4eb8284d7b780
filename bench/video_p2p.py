"""Edits of a clip by words, measured against the true edited clips (Video-P2P), in miniature.

    <ComfyUI's python> bench/video_p2p.py --host COMFYUI [--branches fast ...] [--sheet FILE.png] [--write]
    <ComfyUI's python> bench/video_p2p.py --host COMFYUI --reconstruction [--write]
    <ComfyUI's python> bench/video_p2p.py --host COMFYUI --smooth [--write]

The example clip and the small text-to-image model, through the pack's own nodes and the host's sampler: three edits, each way to
keep the source beside the edit, alone, with the local blend, and with Keep Untouched after it. It takes a few minutes, most of it
null-text optimisation. --reconstruction samples the source prompt in place of an edit, which should give the clip back: what
inversion, guidance and null-text embeddings miss of it. --smooth inverts the clip with and without Smooth Area Perturbation.
--write puts the tables into docs/video_p2p.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

RESULTS = ROOT / "bench" / "video_p2p.json"
PAGE, BEGIN = ROOT / "docs" / "video_p2p.md", "<!-- table: bench/video_p2p.py -->"
BEGIN_BACK = "<!-- table: bench/video_p2p.py --reconstruction -->"
BEGIN_SMOOTH = "<!-- table: bench/video_p2p.py --smooth -->"
INPUTS, SIDE = ROOT / "workflows" / "inputs", 192
SOURCE = "a red disc on a green ground"
STEPS, GUIDANCE, CROSS, TEMPORAL, THRESHOLD, MAP_SCALE, FEATHER = 20, 6.0, 0.8, 0.5, 0.3, 2, 4
BRANCHES = ("fast", "null-text", "stored trajectory")
ALONE, BLEND, KEEP = "alone", "blend", "blend, Keep Untouched"
NO_EDIT = "no edit, through the autoencoder"
MORE_ITERATIONS = (10, 50)  # of null-text, for each step; the release has 10
ALIKE = 0.02  # pixels whose source and truth differ by less, of 1, are not to change


class Case(NamedTuple):
    """An edit: its prompt, the words in which it may act, and its row in the picture of true edits."""

    text: str
    words: str
    row: int


CASES = (
    Case("a blue disc on a green ground", "@disc", 0),
    Case("a red disc on a yellow ground", "@ground, -@disc", 2),
    Case("a blue square on a green ground", "@disc, @square", 3),
)


def clip_and_truths():
    """The clip (F, H, W, 3) and the true edits (rows, F, H, W, 3), in [0, 1]."""
    import av
    import numpy as np
    import torch
    from PIL import Image

    with av.open(str(INPUTS / "shape_clip.mp4")) as file:
        clip = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in file.decode(video=0)]).float() / 255
    with Image.open(INPUTS / "shape_clip_truth.png") as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).float() / 255
    return clip, torch.stack([torch.stack(row.split(SIDE, 1)) for row in sheet.split(SIDE)])


class Bench:
    """Runs the pack's own nodes and the host's sampler on the clip."""

    def __init__(self, load) -> None:
        self.nodes = {node.define_schema().node_id: node for node in load("nodes").NODES}
        self.read = load("core.evaluation.captions").read_picture
        self.perceptual = perceptual(load)
        loaded = load("host.weights.text_to_image").load(ROOT / "models" / "small_text_to_image.safetensors")
        self.clip, self.vae = loaded.clip, loaded.vae
        self.empty = load("host.attention.prompt_text").encode(self.clip, "")
        self.video, self.truths = clip_and_truths()
        self.latent = {"samples": self.vae.encode(self.video)}
        (self.model,) = self.call("VideoTextModel", model=loaded.model)
        source, *_ = self.plan(CASES[0])
        self.start, self.trajectory, self.schedule = self.call("InvertDDIM", model=self.model, positive=source,
                                                               latent=self.latent, steps=STEPS)

    def call(self, name: str, **inputs) -> Any:
        """The outputs of a node."""
        return self.nodes[f"FramePainter{name}"].execute(**inputs).args

    def plan(self, case: Case) -> Any:
        """Source and edited conditioning, plan, picture."""
        return self.call("PromptEdit", clip=self.clip, source_text=SOURCE, edited_text=case.text, words=case.words)

    def frames(self, samples):
        """Decoded frames (F, H, W, 3)."""
        return self.vae.decode(samples).reshape(-1, SIDE, SIDE, 3).clamp(0, 1).cpu()

    def null_text(self, iterations: int = 10) -> Any:
        """Null-text embeddings of the clip, the same for all edits."""
        return self.call("NullText", model=self.model, trajectory=self.trajectory, negative=self.empty, guidance=GUIDANCE,
                         iterations=iterations)[0]

    def sample(self, model, guidance: float, positive) -> dict[str, Any]:
        """ComfyUI's sampler, from the clip's inverted noise."""
        from comfy_extras.nodes_custom_sampler import KSamplerSelect, SamplerCustom

        sampler = KSamplerSelect.execute(sampler_name="euler").args[0]
        return SamplerCustom.execute(model=model, add_noise=False, noise_seed=0, cfg=guidance, positive=positive,
                                     negative=self.empty, sampler=sampler, sigmas=self.schedule, latent_image=self.start).args[0]

    def missed(self, samples) -> tuple[float, float]:
        """What latents miss of the clip's: root mean square in the network's scale, and PSNR of their frames beside the clip."""
        import math

        scale = self.model.get_model_object("latent_format").scale_factor
        apart = float((samples - self.latent["samples"]).pow(2).mean().sqrt()) * scale
        return apart, -10 * math.log10(float((self.frames(samples) - self.video).pow(2).mean()))

    def edited(self, case: Case, branch: str, blend: bool, null_text) -> dict[str, Any]:
        """Frames of an edit; with the blend also those that Keep Untouched makes of it."""
        _, positive, plan, _ = self.plan(case)
        (model,) = self.call("PromptAttention", model=self.model, plan=plan, trajectory=self.trajectory, null_text=null_text,
                             source_branch=branch, cross_steps=CROSS, temporal_steps=TEMPORAL, blend=blend,
                             blend_threshold=THRESHOLD, map_scale=MAP_SCALE)
        out = self.sample(model, GUIDANCE, positive)
        frames = self.frames(out["samples"])
        if not blend:
            return {ALONE: frames}
        *_, area = self.call("WordMap", model=model, positive=positive, latent=out, words="", prompt="edited",
                             threshold=THRESHOLD)
        kept, _ = self.call("KeepUntouched", original=self.video, edited=frames, mask=area, feather=FEATHER,
                            feather_side="outside", colour_match="mean", size_mismatch="error")
        return {BLEND: frames, KEEP: kept}

    def values(self, found, truth) -> dict[str, Any]:
        """What frames are worth beside the source, where it is not to change, and beside the true edit elsewhere."""
        same = (truth - self.video).abs().amax(-1) < ALIKE
        readings = [[self.read(frame.movedim(-1, 0)) for frame in frames] for frames in (found, truth)]
        pairs = [(seen, true) for seen, true in zip(*readings, strict=True) if seen is not None]
        apart = [SIDE / 2 * sum((a - b) ** 2 for a, b in zip(seen.centre, true.centre, strict=True)) ** 0.5 for seen, true in pairs]
        out = {
            "outside": float((found - self.video).pow(2).mean(-1)[same].mean()),
            "identical": float((found == self.video).all(-1)[same].float().mean()),
            "inside": 255 * float((found - truth).abs().mean(-1)[~same].mean()),
            "position": sum(apart) / len(apart) if apart else None,
            "colours": sum((seen.colour, seen.ground) == (true.colour, true.ground) for seen, true in pairs),
            "shape": sum(seen.shape == true.shape for seen, true in pairs),
            "frames": len(found),
        }
        if self.perceptual is not None:
            only = found.where(same[..., None], self.video)
            seen = [self.perceptual(a.movedim(-1, 0)[None], b.movedim(-1, 0)[None]) for a, b in zip(only, self.video, strict=True)]
            out["lpips"] = sum(seen) / len(seen)
        return out


def perceptual(load):
    """LPIPS, None where its weights are not there."""
    evaluation = load("host.evaluation")
    try:
        return evaluation.lpips_metric()
    except evaluation.Unavailable as why:
        print(f"LPIPS is left out: {why}.", flush=True)
        return None


def measure(load, branches: list[str], sheet: Path | None) -> list[dict]:
    """Each way over all edits; first what leaving all as it is gets, which is the autoencoder's own error."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    bench = Bench(load)
    rows: dict[tuple[str, str], list[dict]] = {}
    pictures = [bench.truths[case.row, 0] for case in CASES]
    decoded = bench.frames(bench.latent["samples"])
    rows[NO_EDIT, ""] = [bench.values(decoded, bench.truths[case.row]) for case in CASES]
    for branch in branches:
        begun = time.perf_counter()
        null_text = bench.null_text() if branch == "null-text" else None
        print(f"{branch}: {time.perf_counter() - begun:.0f} s before the edits", flush=True)
        for case in CASES:
            for blend in (False, True):
                for how, frames in bench.edited(case, branch, blend, null_text).items():
                    rows.setdefault((branch, how), []).append(bench.values(frames, bench.truths[case.row]))
                    pictures.append(frames[0])
                    print(case.text, branch, how, rows[branch, how][-1], flush=True)
    if sheet is not None:
        save_sheet(sheet, pictures)
    return [{"way": way, "how": how, "edits": values} for (way, how), values in rows.items()]


def save_sheet(path: Path, pictures: list) -> None:
    """First frames: the true edits, then for each way and edit the three results."""
    import torch
    from PIL import Image

    rows = [torch.cat(pictures[:len(CASES)], 1)]
    rest = pictures[len(CASES):]
    for start in range(0, len(rest), 3 * len(CASES)):
        rows += [torch.cat(rest[start + n:start + 3 * len(CASES):3], 1) for n in range(3)]
    Image.fromarray((torch.cat(rows) * 255).round().byte().numpy()).save(path)


def merged(new: list[dict]) -> list[dict]:
    """The new results and, of ways that were not measured again, the last ones."""
    old = json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []
    ways = {row["way"] for row in new}
    order = (NO_EDIT, *BRANCHES)
    return sorted([*(row for row in old if row["way"] not in ways), *new], key=lambda row: order.index(row["way"]))


def lines(table: list[dict]) -> list[str]:
    """A Markdown table: means over the edits, the PSNR of their mean squared error."""
    import math

    with_lpips = all("lpips" in edit for row in table for edit in row["edits"])
    head = ["source branch", "", "PSNR outside the edit, dB", *(["LPIPS outside"] if with_lpips else []),
            "pixels outside with the source's bits", "error inside, of 255", "position error, pixels", "colours right",
            "shape right"]
    out = [f"| {' | '.join(head)} |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in table:
        edits = row["edits"]

        def mean(name: str, edits: list[dict] = edits) -> float:
            known = [edit[name] for edit in edits if edit[name] is not None]
            return sum(known) / len(known)

        frames = sum(edit["frames"] for edit in edits)
        cells = [row["way"], row["how"], f"{-10 * math.log10(mean('outside')):.2f}",
                 *([f"{mean('lpips'):.3f}"] if with_lpips else []), f"{100 * mean('identical'):.0f} %", f"{mean('inside'):.1f}",
                 f"{mean('position'):.1f}", *(f"{sum(e[name] for e in edits)} of {frames}" for name in ("colours", "shape"))]
        out.append(f"| {' | '.join(cells)} |")
    return out


def reconstruction(load) -> list[str]:
    """A Markdown table: the source prompt sampled from the inverted noise, with and without guidance and null-text embeddings."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    bench = Bench(load)
    source, *_ = bench.plan(CASES[0])
    out = ["| guidance | null-text, iterations | latents' error | PSNR, dB |", "| --- | --- | --- | --- |"]

    def row(guidance: float, iterations: str, samples) -> None:
        apart, psnr = bench.missed(samples)
        out.append(f"| {guidance:g} | {iterations} | {apart:.3f} | {psnr:.1f} |")
        print(out[-1], flush=True)

    for guidance in (1.0, GUIDANCE):
        row(guidance, "none", bench.sample(bench.model, guidance, source)["samples"])
    for iterations in MORE_ITERATIONS:
        found = bench.null_text(iterations).latents[-1]
        row(GUIDANCE, str(iterations), bench.model.get_model_object("latent_format").process_out(found))
    return out


def smooth(load) -> list[str]:
    """A Markdown table: Anderson-Darling statistic of the inverted latents, with and without perturbed smooth areas."""
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    bench, statistic = Bench(load), load("core.inversion.normality").anderson_darling
    source, *_ = bench.plan(CASES[0])
    out = ["| noise_scale | statistic |", "| --- | --- |", f"| none | {statistic(bench.start['samples']).statistic:.0f} |"]
    for scale in (0.005, 0.02, 0.08):
        perturbed = bench.call("SARP", images=bench.video, threshold=0.001, noise_scale=scale, seed=0)[0]
        start, *_ = bench.call("InvertDDIM", model=bench.model, positive=source, latent={"samples": bench.vae.encode(perturbed)},
                               steps=STEPS)
        out.append(f"| {scale:g} | {statistic(start['samples']).statistic:.0f} |")
        print(out[-1], flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--branches", nargs="*", choices=BRANCHES, default=BRANCHES, help="the others keep their numbers")
    parser.add_argument("--sheet", type=Path, help="picture of the first frames")
    parser.add_argument("--reconstruction", action="store_true", help="the clip given back, in place of edits")
    parser.add_argument("--smooth", action="store_true", help="inversions of perturbed smooth areas, in place of edits")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    for asked, make, begin in ((args.reconstruction, reconstruction, BEGIN_BACK), (args.smooth, smooth, BEGIN_SMOOTH)):
        if asked:
            found = "\n".join(make(load))
            print(found)
            if args.write:
                pages.write_table(PAGE, begin, found)
            return
    table = merged(measure(load, args.branches, args.sheet))
    text = "\n".join(lines(table))
    print(text)
    if args.write:
        settings = {"steps": STEPS, "guidance": GUIDANCE, "cross_steps": CROSS, "map_scale": MAP_SCALE, "feather": FEATHER}
        RESULTS.write_text(json.dumps({**settings, "results": table}, indent=1) + "\n", encoding="utf-8")
        pages.write_table(PAGE, BEGIN, text)


if __name__ == "__main__":
    main()
