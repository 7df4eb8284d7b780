"""Every file format that the pack reads: a valid example, and the node that reads it from its folder."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths


class Format(NamedTuple):
    """A kind of file.

    make(stock, folder): writes what is read into ComfyUI's folders, of which `folder` holds input, output and models.
    damage(folder): the files of which one is damaged.
    read(stock, folder): the node's results.
    node: whose name an error has to bear.
    """

    make: Callable[[Any, Path], None]
    damage: Callable[[Path], list[Path]]
    read: Callable[[Any, Path], tuple]
    node: str
    weight: float = 1.0


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _files(*patterns: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(p for pattern in patterns for p in folder.glob(pattern) if p.is_file() and p.stat().st_size)


def _cached(stock: Any, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of files that is made once and copied for every attack on it."""
    place = stock.folder / "sound" / name
    if not place.exists():
        before = folder_paths.get_output_directory()
        folder_paths.set_output_directory(str(place / "output"))
        try:
            (place / "output").mkdir(parents=True)
            make(place)
        finally:
            folder_paths.set_output_directory(before)
    return place


def _from(name: str, make: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
    return lambda stock, folder: shutil.copytree(_cached(stock, name, lambda place: make(stock, place)), folder, dirs_exist_ok=True)


# ---- films and pictures ------------------------------------------------------------------------------------------------


def _film(stock: Any, folder: Path) -> None:
    name = stock.dice.choice(sorted(stock.videos))
    _put(folder / "input" / "films" / name, stock.videos[name])


def _read_film(stock: Any, folder: Path) -> tuple:
    from comfy_api.latest import InputImpl

    path = next((folder / "input" / "films").iterdir())
    return stock.call("ReadVideo", video=InputImpl.VideoFromFile(str(path)), start=stock.dice.choice((0.0, 0.0, 0.2)),
                      fps=stock.dice.choice((-1.0, -1.0, 12.0)))


def _pictures(stock: Any, folder: Path) -> None:
    name = stock.dice.choice(sorted(stock.pictures))
    for i in range(3):
        _put(folder / "input" / "films" / "clip" / f"{i:03}{Path(name).suffix}", stock.pictures[name])


def _dataset_of_files(stock: Any, folder: Path) -> tuple:
    return stock.call("BuildDataset", videos="films", name="new", width=32, height=32, min_seconds=0.0, max_seconds=0.5,
                      static_camera=0.0, min_motion=0.0, max_motion=2.0, pairs_per_video=1, fps=10.0)


# ---- weights -----------------------------------------------------------------------------------------------------------


def _weights(stock: Any, folder: Path) -> None:
    _put(folder / "models" / "checkpoints" / "damaged.safetensors", stock.tiny.read_bytes())


def _read_weights(stock: Any, folder: Path) -> tuple:
    part = stock.dice.choice(("model_file", "encoder_file", "clip_and_vae"))
    sound = {"model_file": "tiny.safetensors", "encoder_file": "(in the model file)", "clip_and_vae": "(in the model file)"}
    _put(folder / "models" / "checkpoints" / "tiny.safetensors", stock.tiny.read_bytes())
    if part == "encoder_file":
        place = folder / "models"
        (place / "checkpoints" / "damaged.safetensors").rename(place / "framepainter" / "damaged.safetensors")
    return stock.call("Load", **{**sound, part: "damaged.safetensors"})


def _text_weights(stock: Any, folder: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "models" / "small_text_to_image.safetensors"
    _put(folder / "models" / "framepainter" / "damaged.safetensors", source.read_bytes())


def _motion_lora(stock: Any, folder: Path) -> None:
    def make(place: Path) -> None:
        for form in ("ComfyUI", "published by the authors"):
            stock.call("SaveMotionLora", lora=stock.lora, filename_prefix="lora", model=stock.svd.model, form=form)

    made = _cached(stock, "loras", make)
    ending = stock.dice.choice((".safetensors", ".pt"))
    source = next(p for p in sorted((made / "output").iterdir()) if p.suffix == ending)
    _put(folder / "models" / "loras" / f"damaged{ending}", source.read_bytes())


def _read_lora(stock: Any, folder: Path) -> tuple:
    name = next((folder / "models" / "loras").iterdir()).name
    return stock.call("LoadMotionLora", model=stock.svd.model, lora_file=name)


def _flow_weights(stock: Any, folder: Path) -> None:
    import torch
    from torchvision.models.optical_flow import raft_small

    made = stock.folder / "raft.pth"
    if not made.exists():
        torch.save(raft_small(weights=None).state_dict(), made)
    _put(folder / "models" / "optical_flow" / "raft_small.pth", made.read_bytes())


def _read_flow_weights(stock: Any, folder: Path) -> tuple:
    return stock.call("BuildDataset", videos="", name="new", width=32, height=32, flow_source="raft_small.pth",
                      images=stock.clip, fps=10.0, min_seconds=0.0, max_seconds=0.5, pairs_per_video=1, static_camera=0.0)


# ---- what the nodes keep -------------------------------------------------------------------------------------------------


def _trajectory(stock: Any, place: Path) -> None:
    stock.call("SaveTrajectory", trajectory=stock.edm[1], filename_prefix="trajectories/clip")


def _tuned(stock: Any, place: Path) -> None:
    stock.call("SaveTunedVideo", tuned=stock.tuned, filename_prefix="tuned_videos/video")


def _shards(stock: Any, folder: Path) -> None:
    stock.copy_dataset("set")


def _half_built(stock: Any, folder: Path) -> None:
    """A set whose building was stopped: a journal, and no summary."""
    place = stock.copy_dataset("sound")
    (place / "dataset.json").unlink()
    journal = (place / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "journal.jsonl").write_text("".join(journal[:-1]) or journal[0], encoding="utf-8")


def _train(stock: Any, steps: int) -> tuple:
    return stock.call("Train", model=stock.svd.model, clip_vision=stock.svd.clip_vision, vae=stock.svd.vae, dataset="sound",
                      run_name="run", steps=steps, batch=1, save_every=1, preview_every=0, precision="fp32", rank=2,
                      what_trains="matching and encoder", framepainter=stock.svd.weights)


def _training(stock: Any, place: Path) -> None:
    stock.copy_dataset("sound")
    _train(stock, 2)


def _motion(stock: Any, steps: int) -> tuple:
    return stock.call("TrainMotionLora", model=stock.svd.model, clip_vision=stock.svd.clip_vision, vae=stock.svd.vae,
                      frames=stock.clip, steps=steps, rank=2, precision="fp32", width=64, height=64, save_every=1)


def _tune(stock: Any, steps: int) -> tuple:
    return stock.call("TuneOnVideo", model=stock.text.model, positive=stock.prompts[0], latent=stock.text_latent, steps=steps,
                      preset="small network", save_every=1)


def _propagate(stock: Any) -> tuple:
    return stock.call("PropagateEdit", model=stock.svd.model, clip_vision=stock.svd.clip_vision, vae=stock.svd.vae,
                      frames=stock.clip, edited=1 - stock.clip[:1], plan=stock.plan, width=48, height=32, lora_steps=1, steps=2,
                      rank=2, precision="fp32")


FORMATS = {
    "video": Format(_film, _files("input/films/*"), _read_film, "Read Video", 4.0),
    "video of a dataset": Format(_film, _files("input/films/*"), _dataset_of_files, "Build Dataset", 1.0),
    "pictures of a dataset": Format(_pictures, _files("input/films/clip/*"), _dataset_of_files, "Build Dataset", 2.0),
    "FramePainter weights": Format(_weights, _files("models/checkpoints/*"), _read_weights, "Load FramePainter", 3.0),
    "text-to-image weights": Format(
        _text_weights, _files("models/framepainter/*"),
        lambda stock, folder: stock.call("LoadTextToImage", model_file="damaged.safetensors"),
        "Load Small Text-to-Image Model", 1.0),
    "motion LoRA": Format(_motion_lora, _files("models/loras/*"), _read_lora, "Load Motion LoRA", 4.0),
    "RAFT weights": Format(_flow_weights, _files("models/optical_flow/*"), _read_flow_weights, "Build Dataset", 0.4),
    "trajectory": Format(
        _from("trajectory", _trajectory), _files("output/trajectories/*"),
        lambda stock, folder: stock.call("LoadTrajectory", file="clip_00001_.safetensors"), "Load Trajectory", 4.0),
    "tuned video": Format(
        _from("tuned", _tuned), _files("output/tuned_videos/*"),
        lambda stock, folder: stock.call("LoadTunedVideo", model=stock.text.model, file="video_00001_.safetensors"),
        "Load Tuned Video", 2.0),
    "dataset": Format(_shards, _files("output/framepainter_datasets/set/*"),
                      lambda stock, folder: stock.call("DatasetPreview", dataset="set"), "Dataset Preview", 5.0),
    "unfinished dataset": Format(_half_built, _files("output/framepainter_datasets/sound/*"),
                                 lambda stock, folder: stock.call("ProceduralDataset", name="sound", count=4, width=32, height=32),
                                 "Procedural Dataset", 2.0),
    "training run": Format(_from("training", _training), _files("output/framepainter_training/run/**/*"),
                           lambda stock, folder: _train(stock, 3), "FramePainter Train", 0.4),
    "motion LoRA run": Format(_from("motion", lambda stock, place: _motion(stock, 2)), _files("output/framepainter_motion/**/*"),
                              lambda stock, folder: _motion(stock, stock.dice.choice((2, 3))), "Train Motion LoRA", 0.4),
    "tuning run": Format(_from("tuning", lambda stock, place: _tune(stock, 2)), _files("output/framepainter_tuning/**/*"),
                         lambda stock, folder: _tune(stock, stock.dice.choice((2, 3))), "Tune on Video", 0.4),
    "stages of a long video": Format(_from("stages", lambda stock, place: _propagate(stock)),
                                     _files("output/framepainter_video/**/*"),
                                     lambda stock, folder: _propagate(stock), "Propagate Edit", 0.3),
}
SEALED = {"trajectory", "stages of a long video"}  # files with a digest of their values: damage is noticed, or changes nothing


def chosen(dice: random.Random) -> str:
    """A format's name, the cheap ones more often."""
    return dice.choices(sorted(FORMATS), [FORMATS[name].weight for name in sorted(FORMATS)])[0]

