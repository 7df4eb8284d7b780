"""How well the small text-to-image model follows its prompts, read back from the pixels.

    <ComfyUI's python> bench/text_model.py --host COMFYUI [--write]

All combinations of size, colour, shape and ground that it was not trained on, and as many that it was, as prompts; share of
pictures in which a word is right, and the intersection over union with the ideal shape. --write puts the table into
models/README.md. Minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

PAGE, MARK = ROOT / "models" / "README.md", "<!-- table: bench/text_model.py -->"
WORDS = {"size": 1, "colour": 2, "shape": 3, "ground": 6}  # their places in a caption
# Sampler, scheduler, steps, guidance; whether the combinations were held out.
RUNS = [("ddim", "normal", 20, 6.0, True), ("ddim", "normal", 20, 7.5, True), ("ddim", "normal", 50, 7.5, True),
        ("euler", "normal", 20, 4.0, True), ("euler", "normal", 20, 1.0, True), ("ddim", "normal", 20, 6.0, False)]
SEED = 5


def pictures(loaded: Any, texts: list[str], sampler: str, scheduler: str, steps: int, cfg: float) -> Any:
    """(B, 3, 192, 192) by the host's sampler."""
    import comfy.sample
    import torch

    def encoded(text: str) -> Any:
        return loaded.clip.encode_from_tokens(loaded.clip.tokenize(text))

    latent = torch.zeros(len(texts), 4, 24, 24)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(SEED))
    positive, negative = torch.cat([encoded(text) for text in texts]), encoded("")
    out = comfy.sample.sample(loaded.model, noise, steps, cfg, sampler, scheduler, [[positive, {}]], [[negative, {}]], latent,
                              disable_pbar=True, seed=SEED)
    return loaded.vae.decode(out).movedim(-1, 1)


def row(load: Callable[[str], Any], loaded: Any, subjects: Any, run: tuple) -> str:
    captions, read = load("core.data.captions"), load("core.evaluation.captions").read_picture
    sampler, scheduler, steps, cfg, held = run
    count = len(subjects.shape)
    texts = [captions.caption(subjects, i) for i in range(count)]
    right: dict[str, list[bool]] = {name: [] for name in WORDS}
    overlaps = []
    for i, picture in enumerate(pictures(loaded, texts, sampler, scheduler, steps, cfg)):
        said, seen = captions.words(subjects, i), read(picture)
        for name, place in WORDS.items():
            right[name].append(seen is not None and getattr(seen, name) == said[place])
        overlaps.append(seen.agreement if seen else 0.0)
    whole = [all(values) for values in zip(*right.values(), strict=True)]
    shares = [sum(values) / count for values in (*right.values(), whole)]
    kind = "not trained on" if held else "trained on"
    return (f"| {count}, {kind} | {sampler}, {steps}, {cfg:g} | " + " | ".join(f"{100 * s:.0f} %" for s in shares)
            + f" | {sum(overlaps) / count:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--write", action="store_true", help="rewrite the table in models/README.md")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve(), cpu=True)
    import torch

    captions = load("core.data.captions")
    every = captions.all_subjects()
    held = captions.Subjects(*(part[captions.held_out(every)] for part in every))
    known = captions.draw_subjects(len(held.shape), torch.Generator().manual_seed(SEED))
    lines = ["| prompts | sampler, steps, guidance | " + " | ".join(WORDS) + " | all four | overlap |", "|" + " --- |" * 8]
    with torch.inference_mode():
        loaded = load("host.weights.text_to_image").load(ROOT / "models" / "small_text_to_image.safetensors")
        for run in RUNS:
            lines.append(row(load, loaded, held if run[-1] else known, run))
            print(lines[-1], flush=True)
    if options.write:
        pages.write_table(PAGE, MARK, "\n".join(lines))


if __name__ == "__main__":
    main()
