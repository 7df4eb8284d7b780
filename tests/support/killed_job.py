"""A long-video job in processes that are killed at random moments; prints what came of it as JSON.

    <ComfyUI's python> tests/support/killed_job.py FOLDER KILLS

ComfyUI and the model are loaded once and forked for every attempt, so that most of the time is the job's own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import by_path


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    load = by_path.open_pack()
    import torch
    from framepainter_tests import tiny
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)  # threads do not survive a fork
    propagate, clips, presets = load("host.video.propagate"), load("core.video.clips"), load("core.training.motion_lora.presets")
    path = tiny.write(folder / "tiny.safetensors", load, by_path.tool)
    with torch.inference_mode():
        loaded = load("host.weights.loading").load(path, None, None, torch.float32)
    models = propagate.Models(loaded.model, loaded.clip_vision, loaded.vae)
    frames = torch.full((8, 33, 47, 3), 0.2)
    for i in range(8):
        frames[i, 8:24, 2 + 4 * i:12 + 4 * i] = torch.tensor([0.9, 0.5, 0.1])
    settings = propagate.Settings(32, 48, steps=2, lora="one a clip",
                                  motion=presets.MotionSettings(steps=3, rank=4, precision="fp32", save_every=1))
    plan = clips.plan(8, 8.0, 4)

    def child(place: Path, result: Path) -> None:
        with torch.inference_mode():
            made = propagate.Job(models, frames, 1 - frames[:1], plan, settings, place).run()
        save_file({"frames": made.frames.clone()}, str(result), metadata={"stages": "\n".join(made.stages)})

    def start(place: Path, result: Path) -> int:
        number = os.fork()
        if not number:
            try:
                child(place, result)
                os._exit(0)
            except BaseException:  # the parent's code must not run twice
                import traceback

                traceback.print_exc()
                os._exit(1)
        return number

    def ended(number: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

    begun = time.monotonic()
    assert ended(start(folder / "whole", folder / "whole.safetensors")) == 0
    whole_time = time.monotonic() - begun
    whole = load_file(str(folder / "whole.safetensors"))["frames"]

    def two_at_once() -> dict[str, int]:
        """Two jobs on one folder: how often each stage was made, and how many results differ from the whole job's."""
        results = [folder / f"together_{n}.safetensors" for n in range(2)]
        for number in [start(folder / "together", result) for result in results]:
            assert ended(number) == 0
        lines = ""
        for result in results:
            with safe_open(str(result), "pt") as file:
                lines += file.metadata()["stages"] + "\n"
        others = sum(not torch.equal(load_file(str(r))["frames"], whole) for r in results)
        return {"different": others, **{word: lines.count(f"{word}, ") for word in ("trained", "inverted", "edited")}}

    together = two_at_once()
    dice, moments, equal, place, result = random.Random(0), [], [], folder / "killed", folder / "killed.safetensors"

    def compare() -> None:
        equal.append(torch.equal(load_file(str(result))["frames"], whole) and not list(place.rglob("*.partial*")))
        result.unlink()
        shutil.rmtree(place)

    def stages() -> list[str]:
        return sorted(p.name.split("-")[0] for p in place.glob("*.safetensors"))

    def killed(number: int, count: int, delay: float) -> int:
        """Kill a job some time after it has kept so many stages; its exit code. Time alone would say little on a busy machine."""
        while len(stages()) < count:
            found, status = os.waitpid(number, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(number, signal.SIGKILL)
        return ended(number)

    while len(moments) < kills:
        count = len(stages()) + dice.choice([0, 1, 1, 2])
        status = killed(start(place, result), count, dice.uniform(0.0, 0.25) * whole_time)
        if status == -signal.SIGKILL:
            moments.append(stages())
        else:  # the job was finished: compare, and begin another one
            assert status == 0, status
            compare()
    assert ended(start(place, result)) == 0
    compare()
    print(json.dumps({"together": together, "equal": equal, "seconds": whole_time, "moments": moments}))


if __name__ == "__main__":
    main()
