"""The training command: killed, stopped, run by two processes; what it writes loads through the ordinary loader."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from framepainter_tests import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[1] / "support" / "training_process.py"
STEPS = 8


class Runs:
    """Starts the command in processes that already have ComfyUI imported."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.folder, self.checkpoint = folder, checkpoint
        self.process = subprocess.Popen([sys.executable, str(SCRIPT), "--serve"], stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def _ask(self, **what) -> int:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        while True:
            line = self.process.stdout.readline()
            assert line, "the process that starts runs has ended"
            if line.strip().lstrip("-").isdigit():
                return int(line)

    def arguments(self, name: str, **options) -> list[str]:
        given = {"preset": "small network", "steps": STEPS, "batch": 1, "save_every": 2, "preview_every": 0,
                 "learning_rate": 2e-4, **options}
        out = ["--dataset", str(self.folder / "pairs"), "--model", str(self.checkpoint), "--out", str(self.folder / name)]
        for key, value in given.items():
            out += [f"--{key.replace('_', '-')}"] + ([] if value is True else [str(value)])
        return out

    def start(self, name: str, environment: dict | None = None, **options) -> int:
        return self._ask(arguments=self.arguments(name, **options), environment=environment or {},
                         output=str(self.folder / "log.txt"))

    def wait(self, pid: int) -> int:
        return self._ask(wait=pid)

    def run(self, name: str, **options) -> int:
        return self.wait(self.start(name, **options))

    def pair(self, name: str, **options) -> list[int]:
        """Two processes, as a launcher would start them."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [self.start(name, {"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                                  "MASTER_PORT": str(port)}, **options) for r in range(2)]

    def steps(self, name: str) -> int:
        path = self.folder / name / "stats.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def until(self, name: str, step: int, pid: int) -> None:
        """Until a run has logged a step, or has ended."""
        limit = time.monotonic() + 120
        while self.steps(name) < step and not (self.folder / name / "framepainter.safetensors").exists():
            assert time.monotonic() < limit and Path(f"/proc/{pid}").exists(), self.said()
            time.sleep(0.005)

    def saved(self, name: str) -> int:
        """The step of the newest whole state."""
        return max((int(p.name[-6:]) for p in (self.folder / name).glob("state-*")), default=0)

    def until_state(self, name: str, beyond: int, pid: int) -> None:
        """Until a run has saved a newer state, or has ended."""
        limit = time.monotonic() + 120
        while self.saved(name) <= beyond and not (self.folder / name / "framepainter.safetensors").exists():
            assert time.monotonic() < limit and Path(f"/proc/{pid}").exists(), self.said()
            time.sleep(0.005)

    def said(self) -> str:
        return (self.folder / "log.txt").read_text()

    def result(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(str(self.folder / name / "framepainter.safetensors"))

    def state(self, name: str, steps: int = STEPS) -> dict[str, torch.Tensor]:
        return load_file(str(self.folder / name / f"state-{steps:06d}" / "tensors.safetensors"))


@pytest.fixture(scope="module")
def runs(pack, tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "dataset.json").write_text('{"format": 1}')
    out = Runs(folder, tiny.write(folder / "tiny.safetensors", pack, tool))
    yield out
    out.process.stdin.close()
    out.process.wait(30)


@pytest.fixture(scope="module")
def whole(runs):
    """A run that nobody disturbed: two batches a step."""
    assert runs.run("whole", accumulate=2) == 0, runs.said()
    return runs


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def test_killed_at_any_moment(whole):
    """SIGKILL five times, at random moments; what was saved is never lost, and the end is the same bits."""
    chance, saved, hits = random.Random(1), 0, 0
    for moment in range(5):
        pid = whole.start("killed", accumulate=2)
        if moment % 2:  # soon after a new state; else anywhere, mostly while models load and the cache is made
            whole.until_state("killed", saved, pid)
            time.sleep(chance.random() * 0.05)
        else:
            time.sleep(chance.random() * 0.3)
        os.kill(pid, signal.SIGKILL)
        hits += whole.wait(pid) == -signal.SIGKILL
        reached = whole.saved("killed")
        assert reached >= saved
        saved = reached
    assert hits >= 3 and saved > 0
    assert whole.run("killed", accumulate=2) == 0, whole.said()
    assert equal(whole.state("killed"), whole.state("whole")) and equal(whole.result("killed"), whole.result("whole"))
    assert whole.steps("killed") == STEPS


def test_asked_to_stop(whole):
    """SIGTERM ends the run after the step at hand, with a state."""
    pid = whole.start("stopped", accumulate=2, save_every=1000)
    whole.until("stopped", 3, pid)
    os.kill(pid, signal.SIGTERM)
    assert whole.wait(pid) == 130 and "stopped; run it again to resume" in whole.said()
    assert len(list((whole.folder / "stopped").glob("state-*"))) == 1
    assert whole.run("stopped", accumulate=2, save_every=1000) == 0
    assert equal(whole.result("stopped"), whole.result("whole"))


@pytest.mark.parametrize("kind, steps", [({}, STEPS), ({"fsdp": True}, 4)], ids=["ddp", "fsdp"])
def test_two_processes_are_one_with_two_batches(whole, kind, steps):
    """One batch in each of two processes makes the steps that one makes with two; stopped on the way and gone on with."""
    name, reference = "two" + "".join(kind), "whole"
    if steps != STEPS:
        reference = "short"
        assert whole.run(reference, accumulate=2, steps=steps) == 0
    first = whole.pair(name, accumulate=1, steps=steps, **kind)
    whole.until(name, 2, first[0])
    for pid in first:
        os.kill(pid, signal.SIGTERM)
    assert [whole.wait(pid) for pid in first] == [130, 130], whole.said()
    assert 0 < whole.steps(name) < steps
    assert [whole.wait(pid) for pid in whole.pair(name, accumulate=1, steps=steps, **kind)] == [0, 0], whole.said()
    ours, theirs = whole.state(name, steps), whole.state(reference, steps)
    assert ours.keys() == theirs.keys()
    for tensor, value in ours.items():
        part, _, parameter = tensor.partition("/")
        if part in ("parameter", "average"):
            # A bias before a normalisation of one channel a group has a gradient of zero; what is left is rounding, which
            # AdamW divides by itself. Sharded sums round otherwise, so those few say nothing.
            sure = theirs[f"optimizer/exp_avg_sq/{parameter}"].sqrt() > 1e-6 if kind else torch.ones_like(value, dtype=bool)
            assert ((value - theirs[tensor]).abs() * sure).max() < 1e-6, tensor
    one, two = ([json.loads(line) for line in (whole.folder / n / "stats.jsonl").read_text().splitlines()]
                for n in (reference, name))
    for a, b in zip(one, two, strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)


def test_what_it_writes_loads(whole, pack):
    """Single file and the authors' two files give the same MODEL and FRAMEPAINTER, which are what was trained."""
    loading = pack("host.weights.loading")
    folder = whole.folder / "whole"
    pair = [folder / f"framepainter_{part}.safetensors" for part in ("unet", "encoder")]
    with torch.inference_mode():
        single = loading.load(folder / "framepainter.safetensors", None, None, torch.float32)
        double = loading.load(*pair, folder / "framepainter.safetensors", torch.float32)
    state = whole.state("whole")
    for loaded in (single, double):
        for part, model in (("unet", loaded.model), ("matching", loaded.weights.matching), ("encoder", loaded.weights.encoder)):
            module = model.model.diffusion_model if part == "unet" else model.model
            for name, tensor in module.state_dict().items():
                assert torch.equal(tensor, state[f"average/{part}.{name}"]), name
    assert (folder / "loss_curve.png").is_file() and not (folder / "lora.safetensors").exists()


def test_lora_file(whole):
    assert whole.run("lora", what_trains="matching, encoder and LoRA", steps=2, rank=4, precision="fp32", bare=True) == 0
    lora = load_file(str(whole.folder / "lora" / "lora.safetensors"))
    assert all(n.startswith("diffusion_model.") for n in lora) and any(n.endswith("lora_up.weight") for n in lora)
    assert not any(n.startswith("first_stage_model.") for n in whole.result("lora"))


@pytest.mark.parametrize("options, message", [
    ({"precision": "fp16"}, "train.py: precision is 'fp16'; choose one of bf16, fp32. fp16 gradients underflow"),
    ({"batch": 0}, "train.py: batch is 0; it must be 1 or more"),
    ({"model": "nowhere.safetensors"}, "--model 'nowhere.safetensors' cannot be read"),
])
def test_what_cannot_be(runs, options, message):
    assert runs.run("bad", **options) == 1
    assert message in runs.said()


def test_starting_from_stable_video_diffusion(runs, pack, tmp_path):
    """The loader of all nodes opens it, too: its parts are checked, and matching attention and control encoder begin new."""
    command, loading, training = pack("host.training.command"), pack("host.weights.loading"), pack("host.training.framepainter")
    plain = {n: t for n, t in load_file(str(runs.checkpoint)).items() if not n.startswith("framepainter.")}
    path, broken = tmp_path / "svd.safetensors", tmp_path / "broken.safetensors"
    with safe_open(str(runs.checkpoint), framework="pt") as file:
        note = file.metadata()  # the width of its heads
    save_file(plain, str(path), note)
    save_file({n: t for n, t in plain.items() if not n.endswith("out.2.bias")}, str(broken), note)

    def load(**given):
        return command.load_models(argparse.Namespace(**{
            "model": path, "encoder": None, "clip_and_vae": None, "framepainter": None, "new": False, "dataset": None, **given}))

    with torch.inference_mode():
        found = load()
        assert isinstance(found, training.Inputs) and found.framepainter is None
        weights = found.model.model.diffusion_model.state_dict()
        assert all(torch.equal(t, plain[f"model.diffusion_model.{n}"]) for n, t in weights.items())
        assert found.clip_vision.image_size and found.vae.decode(torch.zeros(1, 4, 8, 8)).shape[-1] == 3
        assert load(framepainter=runs.checkpoint).framepainter.encoder is not None
        for given, message in (({"model": broken}, "not a complete Stable Video Diffusion checkpoint: missing out.2.bias"),
                               ({"encoder": path.parent / "no"}, "--encoder '.*no' cannot be read")):
            with pytest.raises(loading.WeightsError, match=message):
                load(**given)


def test_through_torchrun(whole):
    """The launcher itself, with the processes that it starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT),
               *whole.arguments("torchrun", steps=2)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert whole.steps("torchrun") == 2 and (whole.folder / "torchrun" / "framepainter.safetensors").is_file()
