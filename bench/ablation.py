"""The paper's two ablations in miniature (Table 3 and 4): how edited frames find the source, and source reconstruction.

    python dev.py ablation [--steps N] [--seeds 0 1] [--folder WORK] [--write]

Every variant starts from the shipped base model, sees the same pairs in the same order with the same noise, and is
measured on the same held-out scenes with known truth. --write rewrites bench/ablation.md, ablation.json and the table in
docs/training.md. A variant that was finished in the work folder is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tools" / "making")]
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402
import small_model  # noqa: E402

# name -> (has the matching branch, settings of the objective)
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "temporal attention only": (False, {"matching": None}),
    "cross-frame (branch, no loss)": (True, {"matching": None}),
    "matching, cross entropy": (True, {"matching": "cross entropy"}),
    "matching, squared error": (True, {"matching": "squared error"}),
    "matching, no source reconstruction": (True, {"matching": "cross entropy", "frame_weights": (0.0, 1.0)}),
}
PAGE, MARK = ROOT / "docs" / "training.md", "<!-- table: bench/ablation.py -->"
ON_PAGE = ("MSE moved", "MSE uncovered", "MSE still", "SSIM", "MSE source frame", "hit rate moved")
HELD_OUT = 96
SAMPLING_STEPS = 16
SIGMAS = (0.5, 2.0, 8.0)
BATCH = 8


def denoise(load: Callable[[str], Any], network: Any, pairs: Any, noise: Any, sigma: Any, record: bool) -> tuple[Any, list]:
    """The clean latents that the network sees in noisy ones, and what its matching attentions asked."""
    edm, asking = load("core.edm"), load("core.training.network")
    noised, s = edm.add_noise(pairs.latents, noise, sigma), edm.broadcast(sigma, noise)
    control = None if pairs.control is None else pairs.control.float() / 255
    v, attention = network(asking.NetworkInput(noised.x, noised.t, pairs.image, pairs.embedding, control, record=record))
    return edm.denoised_from_v(pairs.latents + s * noise, v, s), attention


def measure(load: Callable[[str], Any], network: Any, pairs: Any, folder: Path) -> dict[str, float]:
    """All figures of the table on held-out pairs."""
    import torch
    from safetensors.torch import load_file

    evaluation, table = load("core.evaluation.pairs"), load("core.evaluation.table")
    vae = load("core.models.small_autoencoder").SmallAutoencoder()
    vae.load_state_dict(load_file(str(folder / "autoencoder.safetensors")))

    def pictures(latents: Any) -> Any:
        return ((vae.decode(latents / small_model.SCALING) + 1) / 2).clamp(0, 1)

    truth, flow = pairs.latents, pairs.flow.float()
    with torch.no_grad():
        sampled = load("core.training.preview").sample(network, pairs, SAMPLING_STEPS, 1.0, 5)
        values = evaluation.evaluate_pairs(pictures(sampled[:, 1]), pictures(truth[:, 1]), flow, pairs.visible)
        means = {name: entry.mean for name, entry in table.aggregate(values).items()}
        out = {"MSE moved": means["moved_mse"], "MSE uncovered": means["disoccluded_mse"], "MSE still": means["static_mse"],
               "SSIM": means["ssim"],
               "MSE source frame": float((pictures(sampled[:, 0]) - pictures(truth[:, 0])).pow(2).mean())}
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(6))
        moved = (flow.norm(dim=1, keepdim=True) > 1) & pairs.visible[:, None]
        area = torch.nn.functional.avg_pool2d(moved.float(), 8) > 0.5
        for level in SIGMAS:
            guess, attention = denoise(load, network, pairs, noise, torch.full((len(pairs),), level), level == 2.0)
            wrong = (guess - truth)[:, 1].pow(2).mean(1, keepdim=True)
            out[f"latent error moved, sigma {level:g}"] = float(wrong[area].mean())
            if attention:
                out["hit rate moved"] = hit_rate(load, attention, pairs)
    return out


def hit_rate(load: Callable[[str], Any], attention: list, pairs: Any) -> float:
    """Share of moved target tokens whose strongest source token is within one of the true one, on the finest maps."""
    losses, truth, correspondence = (
        load(f"core.{m}") for m in ("training.framepainter.losses", "attention.correspondence", "evaluation.correspondence"))
    height, width = pairs.latents.shape[-2:]
    matches = truth.token_matches(pairs.flow.float(), pairs.visible, height, width)
    finest = [site for site in attention if site.q.shape[2] == height * width]
    weights = sum(losses.attention_weights(site.q[:, -1], site.k, site.heads) for site in finest)
    return correspondence.hit_rate(weights.argmax(-1), matches, height, width).moved.rate


def train(load: Callable[[str], Any], folder: Path, name: str, seed: int, steps: int, pairs: Any) -> Any:
    """One variant from the base model; returns its network with averaged weights."""
    import torch

    loop, objective = load("core.training.loop"), load("core.training.framepainter.objective")
    branch, settings = VARIANTS[name]
    network = small_model.start_from(load, ROOT / "models" / "framepainter_small_base.safetensors")
    if not branch:
        network.matching = None
    torch.manual_seed(seed)
    start = load("core.training.framepainter.start")
    network.encoder = start.new_encoder(small_model.UNET["model_channels"], seed, small_model.ENCODER)
    network.requires_grad_(True)
    loss = objective.batch_loss(network, pairs, BATCH, objective.Objective(**settings))
    trainer = loop.Trainer(dict(network.named_parameters()), loop.TrainSettings(
        steps=steps, learning_rate=5e-4, warmup=50, decay_from=steps // 2, ema=0.99, seed=seed, save_every=100))
    place = folder / "ablation" / f"{name.replace(' ', '_').replace(',', '')}-{steps}-{seed}"

    def report(step: Any) -> None:
        if step.step % 50 == 0:
            print(f"{name}, seed {seed}: {step.step}/{steps}, {step.losses}, {step.seconds:.2f} s", flush=True)

    with torch.enable_grad():
        loop.train(trainer, loss, place, report)
    with torch.no_grad():
        for parameter_name, parameter in network.named_parameters():
            parameter.copy_(trainer.averages[parameter_name])
    return network


def table(results: dict[str, list[dict[str, float]]], columns: Sequence[str] | None = None) -> str:
    """Markdown: mean over seeds, and half the range between them; of all columns if none are named."""
    columns = columns or list(dict.fromkeys(c for runs in results.values() for run in runs for c in run))
    lines = ["| variant | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, runs in results.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs if column in run]
            half = (max(values) - min(values)) / 2 if values else 0.0
            cells.append(f"{statistics.mean(values):.4f} ± {half:.4f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: dict[str, list[dict[str, float]]], steps: int, seeds: list[int]) -> None:
    """The table and the figures, so far."""
    text = (f"# Ablations in miniature\n\n{steps} steps of {BATCH} pairs from the base model, seeds {seeds}, {HELD_OUT} "
            f"held-out scenes; mean ± half the range over the seeds. `python dev.py ablation` reruns it.\n\n"
            f"{table(results)}\n")
    (ROOT / "bench" / "ablation.md").write_text(text, encoding="utf-8")
    (ROOT / "bench" / "ablation.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    pages.write_table(PAGE, MARK, table(results, ON_PAGE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("small_model"), help="the work folder of tools/making/small_model.py")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--write", action="store_true", help="rewrite the tables in bench and docs, after every variant")
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    folder = options.folder
    small_model.unpack(folder)
    pairs = small_model.examples(load, folder, small_model.PAIRS, 2, "sketch", 2)
    held_out = small_model.examples(load, folder, HELD_OUT, 3, "sketch", 2)
    results: dict[str, list[dict[str, float]]] = {}
    begun = time.time()
    for seed in options.seeds:
        for name in VARIANTS:
            network = train(load, folder, name, seed, options.steps, pairs)
            results.setdefault(name, []).append(measure(load, network, held_out, folder))
            print(name, seed, results[name][-1], flush=True)
            if options.write:
                write(results, options.steps, options.seeds[:options.seeds.index(seed) + 1])
    print(table(results))
    print(f"{(time.time() - begun) / 60:.0f} min")


if __name__ == "__main__":
    main()
