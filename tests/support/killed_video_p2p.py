"""Tuning on a video, inverting it and null-text optimisation in processes that are killed at random moments; prints what came of
it as JSON.

    <ComfyUI's python> tests/support/killed_video_p2p.py FOLDER KILLS [SEED]

ComfyUI is imported once and forked for every attempt. For each work: its result after every killed run, equal bit for bit to that
of an undisturbed one or not, and how many states were kept at each kill.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import by_path

FRAMES, SIDE, STEPS = 3, 8, 5


def works() -> dict[str, Callable[[Path], dict]]:
    """What is killed: folder -> tensors."""
    load = by_path.open_pack()
    import torch
    from framepainter_tests import text_model

    torch.set_num_threads(1)  # threads do not survive a fork
    ddim, one_shot, tuning = (load(f"host.{name}") for name in ("inversion.ddim", "training.one_shot", "training.tune_on_video"))
    presets, null_text = load("core.training.one_shot.presets"), load("core.inversion.null_text")
    tensors = text_model.small_tensors(load)
    model, plain = text_model.inflated(load, tensors), text_model.build(load, text_model.split(tensors)[0])
    generator = torch.Generator().manual_seed(0)
    text, empty = (torch.randn(1, 77, 16, generator=generator) for _ in range(2))
    video = torch.randn(FRAMES, 4, SIDE, SIDE, generator=generator)
    settings = replace(presets.PRESETS["small network"], steps=STEPS, learning_rate=1e-3, save_every=1)
    with torch.inference_mode():
        inverted = ddim.invert(model, [[text, {}]], {"samples": video}, STEPS)

    def tune(folder: Path) -> dict:
        made = tuning.tune(one_shot.OneShotInputs(plain, text, video), settings, folder, load("host.attention.inflated").Settings())
        return made.trained.tensors

    def invert(folder: Path) -> dict:
        return {"states": ddim.invert(model, [[text, {}]], {"samples": video}, STEPS, folder).states}

    def optimise(folder: Path) -> dict:
        found = ddim.optimise(model, inverted, [[empty, {}]], null_text.NullTextSettings(5.0, 3), folder=folder)
        return {f"embedding {n}": t for n, t in enumerate(found.embeddings)} | {"video": found.latents[-1]}

    return {"Tune on Video": tune, "Invert DDIM": invert, "Null-Text": optimise}


def start(work: Callable[[Path], dict], place: Path, result: Path) -> int:
    number = os.fork()
    if not number:
        try:
            import torch
            from safetensors.torch import save_file

            with torch.inference_mode():
                save_file({n: t.clone().contiguous() for n, t in work(place).items()}, str(result))
            os._exit(0)
        except BaseException:  # the parent's code must not run twice
            import traceback

            traceback.print_exc()
            os._exit(1)
    return number


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def saved(place: Path) -> set[tuple[str, int]]:
    """What a run has kept so far; a file that is replaced counts again."""
    out = set()
    for path in place.rglob("*"):
        try:
            if path.is_file() and not path.name.startswith("."):
                out.add((str(path), path.stat().st_mtime_ns))
        except FileNotFoundError:  # replaced at this moment
            continue
    return out


def killed(number: int, place: Path, count: int, delay: float) -> tuple[int, int]:
    """Kill a run some time after it has kept so many more files; its exit code, and how many it had kept."""
    seen = before = saved(place)
    while len(seen - before) < count:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), len(seen - before)
        time.sleep(0.01)
        seen = seen | saved(place)
    time.sleep(delay)
    os.kill(number, signal.SIGKILL)
    return ended(number), len(seen - before)


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    dice, report = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0), {}
    from safetensors.torch import load_file

    made = works()
    for name, work in made.items():
        place, result = folder / name / "killed", folder / name / "killed.safetensors"
        place.mkdir(parents=True)
        begun = time.monotonic()
        assert ended(start(work, folder / name / "whole", folder / name / "whole.safetensors")) == 0
        step = (time.monotonic() - begun) / STEPS
        whole, equal, moments = load_file(str(folder / name / "whole.safetensors")), [], []

        def compare(place: Path = place, result: Path = result, whole: dict = whole, equal: list = equal) -> None:
            found = load_file(str(result))
            equal.append(found.keys() == whole.keys() and all(bool((t == whole[n]).all()) for n, t in found.items()))
            result.unlink()
            shutil.rmtree(place)
            place.mkdir()

        while len(moments) < kills:
            status, reached = killed(start(work, place, result), place, dice.choice((0, 1, 1, 2)), dice.uniform(0.0, step))
            if status == -signal.SIGKILL:
                moments.append(reached)
            else:  # it was finished: compare, and begin another one
                assert status == 0, status
                compare()
        assert ended(start(work, place, result)) == 0
        compare()
        report[name] = {"equal": equal, "moments": moments}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
