"""The process in which nodes get random inputs. It is started by fuzz.py, which survives whatever happens here.

    <ComfyUI's python> tools/attack/fuzz_child.py HOST FOLDER SEED FIRST COUNT STEP MEMORY_GB

Inputs FIRST, FIRST + STEP, ... Each follows from the seed and its number alone. On standard output one line of JSON at the
beginning of each, one that names its node or format before that is run, and one at its end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import judge  # noqa: E402
import pack as tools_pack  # noqa: E402
from values import Values, described  # noqa: E402

PATIENCE = 20.0  # seconds after which a node is cancelled, as a user would
FOLDERS = ("input", "output", "temp", "user", "models")
MODELS = ("checkpoints", "framepainter", "diffusion_models", "controlnet", "loras", "optical_flow")
OF_FILES = 0.45  # share of the inputs that are damaged files
# Nodes that work for seconds get fewer inputs.
SLOW = ("FramePainter Train", "Train Motion LoRA", "Propagate Edit", "Tune on Video", "Null-Text", "Record Attention", "Invert EDM",
        "Invert DDIM", "Difference Mask", "Correspondence Map", "Load FramePainter", "Save FramePainter Checkpoint",
        "Load Small Text-to-Image Model")
FULL, JUMPING = 0.03, 0.03  # shares of the inputs with a disk that takes nothing, with a clock that jumps
SAMPLED = 0.1  # share of the models that come out which are sampled with


class Trespass:
    """Notes what Python itself does outside of the folders it may write to, on the network, and with other programs."""

    def __init__(self, folder: Path):
        self.allowed, self.found, self.on = (str(folder), os.devnull), [], False
        self.full = 0  # errno with which the output folder refuses all that is new, as a full or a read-only disk does
        self.output = str(folder / "case" / "output")
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            self._path(event, args[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"):
            self._path(event, args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._path(event, args[1])
        elif event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "os.system", "os.exec", "os.fork"):
            self.found.append(f"{event} {args!r}"[:200])
        elif event == "subprocess.Popen" and not str(args[1][1:2]).endswith("child.py']"):
            self.found.append(f"{event} {args[1]!r}"[:200])

    def _path(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(path))
            if not path.startswith(self.allowed):
                self.found.append(f"{event} {path}"[:200])
            if self.full and path.startswith(self.output):
                raise OSError(self.full, os.strerror(self.full), path)


def clear(folder: Path) -> None:
    """An empty ComfyUI's folders."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name in MODELS:
        (folder / "models" / name).mkdir()


class Attack:
    """Runs inputs by their numbers.

    Args:
        aim: told the name of the node or format that comes next, so that it is known if this process does not outlive it.
    """

    def __init__(self, host: Path, folder: Path, seed: str, aim: Callable[[str], None]):
        self.folder, self.seed, self.case, self.aim = folder, seed, folder / "case", aim
        clear(self.case)
        load = tools_pack.open_pack(host, cpu=True)
        self.trespass = Trespass(folder)
        self.at_import = self._imported(load)
        import folder_paths

        for name in FOLDERS[:3]:
            getattr(folder_paths, f"set_{name}_directory")(str(self.case / name))
        for name in MODELS:
            folder_paths.folder_names_and_paths[name][0].insert(0, str(self.case / "models" / name))
        from comfy_api.latest import _ui
        from formats import FORMATS, SEALED, chosen
        from stock import Stock

        _ui.random = random.Random(0)  # the host names its previews by the generator that this attack looks after
        self.formats, self.sealed, self.chosen = FORMATS, SEALED, chosen
        self.stock, self.sound = Stock(load, folder / "stock"), {}
        (folder / "stock").mkdir(exist_ok=True)
        self.names = sorted(self.stock.nodes)
        shown = {name: node.define_schema().display_name for name, node in self.stock.nodes.items()}
        self.weights = [0.3 if shown[name] in SLOW else 1.0 for name in self.names]

    def _imported(self, load: Any) -> str | None:
        """Import the pack into a host that is there already; what that did to others, if anything."""
        import comfy.sample  # noqa: F401
        import comfy.sd  # noqa: F401
        import comfy_api.latest  # noqa: F401

        before, self.trespass.on = judge.global_state(), True
        load("nodes")
        self.trespass.on = False
        changed = [key for key, value in judge.global_state().items() if value != before[key]]
        return f"importing the pack changes {changed}, does {self.trespass.found}" if changed or self.trespass.found else None

    def run(self, number: int) -> dict[str, Any]:
        """One input: its target, what came of it, and the fault if it has one."""
        if self.at_import:
            return {"target": "import", "outcome": "result", "fault": self.at_import}
        dice = random.Random(f"{self.seed}/{number}")
        self.stock.dice, self.number = dice, number
        clear(self.case)
        shutil.rmtree(self.folder / "given", ignore_errors=True)
        if dice.random() < OF_FILES:
            kind = self.chosen(dice)
            self.aim(kind)
            return self._file(kind, dice)
        name = dice.choices(self.names, self.weights)[0]
        self.aim(self.stock.nodes[name].define_schema().display_name)
        return self._node(name, dice)

    # A node -----------------------------------------------------------------------------------------------

    def _node(self, name: str, dice: random.Random) -> dict[str, Any]:
        node = self.stock.nodes[name]
        schema = node.define_schema()
        values = Values(self.stock, dice)
        inputs = values.inputs(schema)
        out = {"target": schema.display_name, "inputs": {k: described(v) for k, v in inputs.items()}}
        before = judge.digest(inputs)
        found = self._watched(lambda: self._execute(node, inputs), schema.display_name)
        if "fault" not in found and judge.digest(inputs) != before:
            found["fault"] = "the node has changed its inputs"
        if "results" in found:
            kinds = [(o.display_name, o.io_type) for o in schema.outputs]
            results = found.pop("results")
            fault = None if name == "Evaluate" else judge.result_fault(kinds, results, values.within)
            if fault:
                found["fault"] = fault
            models = [r for (_, kind), r in zip(kinds, results, strict=False) if kind == "MODEL"]
            if models and not fault and dice.random() < SAMPLED and not name.startswith("Load"):
                found |= {"sampled": True, **self._watched(lambda: self._sample(models[0], values.family, dice), "")}
                found.pop("results", None)
        if found.get("fault"):
            self._keep_tensors(inputs)
            shutil.copytree(self.case, self.folder / f"kept-{self.number}")
        return {**out, **found}

    def _execute(self, node: Any, inputs: dict[str, Any]) -> tuple:
        from types import SimpleNamespace

        node.hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
        return node.execute(**inputs).args or ()

    def _sample(self, model: Any, family: str, dice: random.Random) -> tuple:
        """A few steps with a model that a node has patched."""
        import comfy.sample
        import comfy.samplers
        import torch

        stock = self.stock
        if family == "svd":
            positive, latent = dice.choice(((stock.edit[0], stock.edit[2]), (stock.source[0], stock.edm[0])))
            sigmas = stock.edm[2]
        else:
            positive, latent, sigmas = stock.prompts[1], stock.ddim[0], stock.ddim[2]
        samples = latent["samples"]
        with torch.random.fork_rng([]):  # the host's sampler seeds torch's generator
            noise = comfy.sample.prepare_noise(samples, 1)
            return (comfy.sample.sample_custom(model, noise, dice.choice((1.0, 3.0)), comfy.samplers.sampler_object("euler"),
                                               sigmas, positive, positive, samples, disable_pbar=True, seed=1),)

    def _keep_tensors(self, inputs: dict[str, Any]) -> None:
        import numpy
        import torch

        arrays = {k: v.detach().float().numpy() for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.numel() < 10**6}
        numpy.savez_compressed(self.case / "inputs.npz", **arrays)

    # A file -------------------------------------------------------------------------------------------------

    def _file(self, kind: str, dice: random.Random) -> dict[str, Any]:
        from damage import damaged

        form = self.formats[kind]
        if kind in self.sealed and kind not in self.sound:
            self.stock.dice = random.Random(0)
            form.make(self.stock, self.case)
            self.sound[kind] = judge.digest(list(form.read(self.stock, self.case)))
            clear(self.case)
            self.stock.dice = dice
        form.make(self.stock, self.case)
        files = form.damage(self.case)
        path = dice.choice(files)
        data = path.read_bytes()
        broken = damaged(data, dice)
        path.write_bytes(broken)
        out = {"target": kind, "inputs": {"file": path.name, "bytes": [len(data), len(broken)]}}
        given = shutil.copytree(self.case, self.folder / "given")  # what reads them may change the files
        found = self._watched(lambda: form.read(self.stock, self.case), form.node)
        results = found.pop("results", None)
        if results is not None:
            schema = next(n.define_schema() for n in self.stock.nodes.values() if n.define_schema().display_name == form.node)
            kinds = [(o.display_name, o.io_type) for o in schema.outputs]
            found["fault"] = judge.result_fault(kinds, results, True)
            if kind in self.sound and not found["fault"] and judge.digest(list(results)) != self.sound[kind]:
                found["fault"] = "the damage changes the result, and nothing is said"
        if found.get("fault"):
            given.rename(self.folder / f"kept-{self.number}")
        return {**out, **found}

    # Both ---------------------------------------------------------------------------------------------------

    def _watched(self, do: Any, name: str) -> dict[str, Any]:
        """Run something as a server does; how it ended, with the fault if that was not as it should be."""
        import comfy.model_management as mm
        import torch

        clock, jumps = time.time, self.stock.dice.random() < JUMPING
        if jumps:  # a clock that is set while a node works
            time.time = lambda: clock() + random.Random(clock()).choice((0.0, 1e9, -1e9))
        self.trespass.full = errno.EROFS if self.stock.dice.random() < FULL else 0
        timer = threading.Timer(PATIENCE, mm.interrupt_current_processing)
        timer.start()
        before, self.trespass.found, self.trespass.on = judge.global_state(), [], True
        try:
            with torch.inference_mode():
                found = {"outcome": "result", "results": do()}
        except mm.InterruptProcessingException:
            found = {"outcome": "cancelled"}
        except Exception as error:
            found = {"outcome": "refused", "says": str(error)[:500]}
            fault = judge.error_fault(error, name)
            if fault:
                found |= {"fault": fault, "trace": "".join(traceback.format_exception(error))[-4000:]}
        finally:
            self.trespass.on, self.trespass.full, time.time = False, 0, clock
            timer.cancel()
            mm.interrupt_current_processing(False)
        changed = [key for key, value in judge.global_state().items() if value != before[key]]
        ours = ("case", "stock", "given", "here", "kept-")
        outside = [p.name for p in self.folder.iterdir() if not p.name.startswith(ours)] + os.listdir()
        if changed:
            found["fault"] = f"changed for the whole process: {', '.join(changed)}"
        if self.trespass.found or outside:  # a pickle that runs makes a folder here
            found["fault"] = f"outside of its folders: {self.trespass.found[:3] + outside}"
        return found


def limit(gigabytes: float) -> None:
    """So much memory beyond what is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    host, folder, seed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    first, count, step = map(int, sys.argv[4:7])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not get among the answers
    logging.disable(logging.CRITICAL)

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")

    attack = Attack(host, folder, seed, lambda name: say(target=name))
    if sys.platform.startswith("linux"):
        limit(float(sys.argv[7]))
    for number in range(first, count, step):
        say(start=number)
        begun = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):
            try:
                found = attack.run(number)
            except Exception:  # not a node, but what makes its inputs
                found = {"target": "the attack itself", "outcome": "result", "fault": traceback.format_exc()[-700:]}
        say(end=number, seconds=round(time.monotonic() - begun, 2), **found)


if __name__ == "__main__":
    main()
