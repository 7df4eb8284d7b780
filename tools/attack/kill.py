"""Kill a real ComfyUI again and again while it trains, propagates and builds, and compare the final results.

    python dev.py kill [--times N | --minutes M] [--seed S] [--write]

First the jobs run undisturbed. Then they are queued on a new server, which is killed after a random time. The next server, which
has started meanwhile, gets the same prompts on the same folders, and so on until they are done. What they have saved must equal
the undisturbed run bit for bit, with no half-written files beside it. This is repeated until the number of kills is reached.
--write puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(ROOT / "tools" / "hosting"))
import page  # noqa: E402
import server as hosting  # noqa: E402

INSIDE = "(in the model file)"
LOADER = {"class_type": "FramePainterLoad", "inputs": {
    "model_file": "framepainter_small_base.safetensors", "encoder_file": INSIDE, "clip_and_vae": INSIDE, "weight_dtype": "fp32"}}
CLIP = "shape_clip.mp4"
RUN_S = 1200.0
# Arithmetic that does not depend on how busy the machine is.
SAME_BITS = {"MKL_DYNAMIC": "FALSE", "MKL_CBWR": "AUTO,STRICT", "OMP_NUM_THREADS": "1"}
SIDE, PAIRS, FILMS = 64, 12, 3
WITHIN = 1 / 6  # of the time that all jobs take, a server is killed
FOLDERS = {"building a dataset": "framepainter_datasets", "FramePainter Train": "framepainter_training",
           "Train Motion LoRA": "framepainter_motion", "Propagate Edit": "framepainter_video",
           "Tune on Video": "framepainter_tuning"}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": f"FramePainter{kind}", "inputs": inputs}


def video(end: float) -> dict[str, Any]:
    """Nodes 1 and 2: the frames of a short clip."""
    return {"1": {"class_type": "LoadVideo", "inputs": {"file": CLIP}},
            "2": node("ReadVideo", video=["1", 0], fps=-1.0, start=0.0, end=end, even_size=True, longer_side=SIDE)}


def shown(prompt: dict[str, Any], output: int) -> dict[str, Any]:
    """A prompt with something that makes the host run its node 9."""
    return {**prompt, "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", output]}}}


def prompts() -> dict[str, dict[str, Any]]:
    """The jobs: small, of many steps, with a state after nearly each."""
    model = {"model": ["3", 0], "clip_vision": ["3", 2], "vae": ["3", 3]}
    training = {"what_trains": "matching and encoder", "signal": "sketch", "steps": 16, "batch": 1, "learning_rate": 0.0,
                "matching_loss": "as the preset", "matching_weight": -1.0, "ema": 0.9, "accumulate": 0, "precision": "fp32",
                "checkpointing": "as the preset", "save_every": 1, "preview_every": 0, "seed": 0}
    return {
        "building a dataset": {"9": node(
            "BuildDataset", videos="films", name="built", width=SIDE, height=SIDE, min_seconds=0.1, max_seconds=1.0, min_motion=0.0,
            max_motion=2.0, static_camera=0.0, pairs_per_video=3, flow_source="weight-free", drag_points=4, seed=0, fps=8.0)},
        "FramePainter Train": shown({
            "1": node("ProceduralDataset", name="shapes", count=PAIRS, width=SIDE, height=SIDE, seed=0, min_sprites=1,
                      max_sprites=2, max_shift=0.55, turn=26.0, growth=0.15, texture=4, background="smooth", drag_points=4),
            "3": LOADER, "9": node("Train", **model, dataset=["1", 0], run_name="run", preset="small network", **training)}, 2),
        "Train Motion LoRA": shown({
            **video(0.5), "3": LOADER,
            "9": node("TrainMotionLora", **model, frames=["2", 0], preset="12 GB", steps=16, learning_rate=5e-4, rank=4,
                      strength=1.0, seed=0, width=SIDE, height=SIDE, precision="fp32", save_every=1)}, 2),
        "Propagate Edit": shown({
            **video(0.8), "3": LOADER,
            "4": {"class_type": "ImageInvert", "inputs": {"image": ["5", 1]}},
            "5": node("PlanClips", frames=["2", 0], fps=["2", 1], sampled_fps=-1.0, length=3, overlap=1, remainder="equal",
                      start=0.0, end=-1.0),
            "9": node("PropagateEdit", **model, frames=["2", 0], edited=["4", 0], plan=["5", 0], width=SIDE, height=SIDE,
                      lora="one for all clips", lora_steps=8, matching="local edit", steps=6, guidance=1.2, carry="latent",
                      colour_match=0.0, anchor=0.0, seed=0, rank=4, precision="fp32")}, 0),
        "Tune on Video": shown({
            **video(0.5), "3": node("LoadTextToImage", model_file="small_text_to_image.safetensors"),
            "4": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["3", 2]}},
            "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red disc on a green ground", "clip": ["3", 1]}},
            "9": node("TuneOnVideo", model=["3", 0], positive=["5", 0], latent=["4", 0], preset="small network", steps=16,
                      learning_rate=3e-5, seed=0, save_every=2)}, 2),
    }


def kept(output: Path, folder: str) -> dict[str, str]:
    """What a job has kept: a digest for each file. Of weights the tensors count, as headers tell times; logs tell times too."""
    from safetensors.torch import load_file

    out = {}
    for path in sorted((output / folder).rglob("*")):
        if not path.is_file() or path.suffix in (".lock", ".jsonl", ".png", ".md", ".jpg"):
            continue
        digest = hashlib.sha256()
        if path.suffix == ".safetensors":
            for name, tensor in sorted(load_file(str(path)).items()):
                digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
        else:
            digest.update(path.read_bytes())
        out[str(path.relative_to(output))] = digest.hexdigest()
    return out


class Spares:
    """Servers that start while another is at work, as a start takes as long as the work between two kills.

    Args:
        make: a new server that has not started.
        ahead: how many are kept ready.
    """

    def __init__(self, make: Callable[[], hosting.Server], ahead: int):
        self.make, self.pool = make, ThreadPoolExecutor(ahead)
        self.coming = deque(self.pool.submit(self._started) for _ in range(ahead))

    def _started(self) -> hosting.Server:
        return self.make().start()

    @contextmanager
    def next(self) -> Iterator[hosting.Server]:
        """A server that answers; it and its own folders are gone afterwards, another one is on its way."""
        self.coming.append(self.pool.submit(self._started))
        with self.coming.popleft().result() as server:
            yield server
        shutil.rmtree(server.base)

    def close(self) -> None:
        for future in self.coming:
            if not future.cancel():
                future.result().stop()
        self.pool.shutdown()


class Kill:
    """Servers that are killed, and what became of their jobs."""

    def __init__(self, host: Path, place: Path, seed: str):
        self.host, self.place, self.dice = hosting.PlainHost(host, Path(sys.executable)), place, random.Random(seed)
        self.jobs, self.numbers = prompts(), count()
        self.kills: Counter[str] = Counter()  # by the job that was at work
        self.equal: Counter[str] = Counter()
        self.faults: list[str] = []
        (place / "input" / "films").mkdir(parents=True)
        for name in (CLIP, *(f"films/clip_{number}.mp4" for number in range(FILMS))):
            shutil.copy(ROOT / "workflows" / "inputs" / CLIP, place / "input" / name)

    def server(self, output: str) -> hosting.Server:
        """A server with folders of its own, all but those of inputs and outputs."""
        shared = ("--input-directory", str(self.place / "input"), "--output-directory", str(self.place / output))
        return hosting.Server(self.host, ROOT, self.place / f"server-{next(self.numbers)}", cpu=True, extra_args=shared,
                              environ=SAME_BITS)

    def undisturbed(self) -> float:
        """Run every job once; seconds of all."""
        with self.server("whole") as server:
            begun = time.monotonic()
            for prompt in self.jobs.values():
                server.run(prompt, RUN_S)
            taken = time.monotonic() - begun
        self.whole = {name: kept(self.place / "whole", FOLDERS[name]) for name in self.jobs}
        for name, files in self.whole.items():
            if not files:
                raise RuntimeError(f"{name} has kept nothing, so there is nothing to compare.")
        return taken

    def round(self, times: int, seconds: float, until: float, spares: Spares) -> int:
        """Jobs in a random order on servers that are killed until they are done; the number of kills, at most `times`.

        Args:
            seconds: within which a server is killed.  until: the time from which none is killed any more.
        """
        killed, done = 0, False
        while not done:
            with spares.next() as server:
                spared = killed >= times or time.monotonic() >= until
                at_work = self._at_work(server, RUN_S if spared else self.dice.uniform(0.0, seconds))
                if done := at_work is None:
                    break
                os.kill(server.pid, signal.SIGKILL)
                if done := spared:
                    self.faults.append(f"{at_work}: not done after {RUN_S:.0f} s")
                    break
                self.kills[at_work] += 1
                killed += 1
                print(f"{sum(self.kills.values())}: killed in {at_work}", flush=True)
        self._compare()
        shutil.rmtree(self.place / "killed")
        return killed

    def _at_work(self, server: hosting.Server, seconds: float) -> str | None:
        """Queue all jobs; the one at work after so long, None if all are done before."""
        end = time.monotonic() + seconds
        order = self.dice.sample(sorted(self.jobs), len(self.jobs))  # so that each is the one at work now and then
        queued = [(name, server.queue(self.jobs[name])) for name in order]
        for name, prompt in queued:
            try:
                server.wait(prompt, end - time.monotonic())
            except hosting.RunTimedOut:
                return name
            except hosting.ServerProblem as problem:  # refused or failed on what the kills have left
                self.faults.append(f"{name}: {problem}")
        return None

    def _compare(self) -> None:
        output = self.place / "killed"
        for name, whole in self.whole.items():
            found = kept(output, FOLDERS[name])
            different = sorted(k for k in {*found, *whole} if found.get(k) != whole.get(k))
            left = [p.name for p in (output / FOLDERS[name]).rglob("*.partial*")]
            if different or left:
                self.faults.append(f"{name}: not equal {different[:4]}, half written {left[:4]}")
                print(self.faults[-1], flush=True)
            else:
                self.equal[name] += 1


def report(found: Kill, rounds: int) -> str:
    rows = [[name, found.kills[name], rounds, found.equal[name]] for name in found.jobs]
    rows.append(["**all**", *(sum(row[i] for row in rows) for i in range(1, 4))])
    return page.table(["at work when the server was killed", "kills", "results compared", "equal bits"], rows)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py kill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=100, help="kills; 100 if not given")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further server after so long")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--ahead", type=int, default=1, help="servers that start while one is at work; 1 if not given")
    parser.add_argument("--jobs", nargs="+", choices=sorted(FOLDERS), help="some of the jobs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args(arguments)
    until, rounds, killed = time.monotonic() + options.minutes * 60, 0, 0
    with tempfile.TemporaryDirectory(prefix="framepainter-kill-") as place:
        found = Kill(Path(options.host).resolve(), Path(place), options.seed)
        found.jobs = {name: prompt for name, prompt in found.jobs.items() if name in (options.jobs or FOLDERS)}
        seconds = found.undisturbed()
        print(f"undisturbed, all jobs take {seconds:.0f} s", flush=True)
        spares = Spares(lambda: found.server("killed"), options.ahead)
        try:
            while killed < options.times and time.monotonic() < until:
                killed += found.round(options.times - killed, seconds * WITHIN, until, spares)
                rounds += 1
        finally:
            spares.close()
    text = report(found, rounds)
    print(f"\n{text}\n\n{killed} kills, {len(found.faults)} faults\n" + "\n".join(found.faults))
    if options.write:
        page.write("kill", f"{page.stamp(found.host.directory)}: {killed} kills, {len(found.faults)} faults.\n\n{text}")
    return 1 if found.faults or not killed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
