"""Valid values for the nodes' sockets, each made once by the pack's own nodes: models, latents, signals, inversions, files."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "FramePainter"
HEIGHT, WIDTH, FRAMES, STEPS = 32, 48, 3, 3
WORDS = ("a red disc on a green ground", "a blue square on a green ground")


class Stock:
    """What the attack begins with.

    Args:
        load: imports modules of the pack.
        folder: for files.
    """

    def __init__(self, load: Any, folder: Path):
        import torch

        self.load, self.folder, self.torch = load, folder, torch
        self.nodes = {node.define_schema().node_id.removeprefix(PREFIX): node for node in load("nodes").NODES}
        self.generator = torch.Generator().manual_seed(0)

    def call(self, name: str, /, **inputs: Any) -> tuple:
        """Run a node with defaults for what is not given; its outputs."""
        node = self.nodes[name]
        node.hidden = SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
        settings = {}
        for socket in node.define_schema().inputs:
            if not socket.optional and socket.id not in inputs:
                default = getattr(socket, "default", None)
                settings[socket.id] = socket.options[0] if default is None and getattr(socket, "options", None) else default
        with self.torch.inference_mode():
            return node.execute(**{**settings, **inputs}).args or ()

    # Models -------------------------------------------------------------------------------------------

    @functools.cached_property
    def tiny(self) -> Path:
        """The smallest FramePainter checkpoint with every part."""
        sys.path.append(str(ROOT / "tests" / "support"))
        import tiny

        def tool(name: str) -> Any:
            import importlib.util

            spec = importlib.util.spec_from_file_location(name, ROOT.joinpath("tools", *name.split(".")).with_suffix(".py"))
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module

        return tiny.write(self.folder / "tiny.safetensors", self.load, tool)

    @functools.cached_property
    def svd(self) -> Any:
        """MODEL, FRAMEPAINTER, CLIP_VISION and VAE."""
        return self.load("host.weights.loading").load(self.tiny, None, None, self.torch.float32)

    @functools.cached_property
    def text(self) -> Any:
        """MODEL, CLIP and VAE of the small text-to-image model."""
        return self.load("host.weights.text_to_image").load(ROOT / "models" / "small_text_to_image.safetensors")

    @functools.cached_property
    def video_text(self) -> Any:
        return self.call("VideoTextModel", model=self.text.model)[0]

    # Pictures and what comes of them --------------------------------------------------------------------

    @functools.cached_property
    def clip(self) -> Any:
        """(F, H, W, 3): a square that moves over a gradient."""
        torch = self.torch
        frames = torch.linspace(0.1, 0.9, WIDTH).view(1, 1, WIDTH, 1).expand(FRAMES, HEIGHT, WIDTH, 3).clone()
        for i in range(FRAMES):
            frames[i, 8:20, 4 + 8 * i:16 + 8 * i] = torch.tensor([0.9, 0.3, 0.1])
        return frames

    @functools.cached_property
    def source(self) -> tuple:
        """CONDITIONING and LATENT of the clip for Invert EDM."""
        return self.call("SourceConditioning", clip_vision=self.svd.clip_vision, vae=self.svd.vae, images=self.clip)

    @functools.cached_property
    def edm(self) -> tuple:
        """LATENT, TRAJECTORY, SIGMAS."""
        return self.call("InvertEDM", model=self.svd.model, positive=self.source[0], latent=self.source[1], steps=STEPS)

    @functools.cached_property
    def edit(self) -> tuple:
        """CONDITIONINGs and LATENT of a FramePainter edit."""
        found = self.call("Conditioning", clip_vision=self.svd.clip_vision, vae=self.svd.vae, image=self.clip[:1], width=WIDTH,
                          height=HEIGHT, size_mode="exact")
        return tuple(part[0] for part in found)

    @functools.cached_property
    def prompts(self) -> tuple:
        """CONDITIONINGs of the source's and the edit's words, EDIT_PLAN, a picture."""
        return self.call("PromptEdit", clip=self.text.clip, source_text=WORDS[0], edited_text=WORDS[1], words="@disc\n@square")

    @functools.cached_property
    def text_latent(self) -> dict:
        return {"samples": self.torch.randn(FRAMES, 4, 8, 8, generator=self.generator)}

    @functools.cached_property
    def ddim(self) -> tuple:
        """LATENT, TRAJECTORY, SIGMAS."""
        return self.call("InvertDDIM", model=self.video_text, positive=self.prompts[0], latent=self.text_latent, steps=STEPS)

    @functools.cached_property
    def empty(self) -> Any:
        return self.load("host.attention.prompt_text").encode(self.text.clip, "")

    @functools.cached_property
    def null_text(self) -> Any:
        return self.call("NullText", model=self.video_text, trajectory=self.ddim[1], negative=self.empty, iterations=1)[0]

    @functools.cached_property
    def tuned(self) -> Any:
        return self.call("TuneOnVideo", model=self.text.model, positive=self.prompts[0], latent=self.text_latent, steps=1,
                         preset="small network")[1]

    @functools.cached_property
    def lora(self) -> dict:
        return self.call("TrainMotionLora", model=self.svd.model, clip_vision=self.svd.clip_vision, vae=self.svd.vae,
                         frames=self.clip, steps=1, rank=2, precision="fp32", width=64, height=64)[1]

    @functools.cached_property
    def record(self) -> Any:
        return self.call("RecordAttention", model=self.svd.model, trajectory=self.edm[1], place="RAM", precision="fp32",
                         budget_gb=1.0)[0]

    @functools.cached_property
    def matched(self) -> Any:
        """MODEL of Match Attention."""
        return self.call("MatchAttention", model=self.svd.model, trajectory=self.edm[1])[0]

    @functools.cached_property
    def prompted(self) -> Any:
        """MODEL of Prompt Attention."""
        return self.call("PromptAttention", model=self.video_text, plan=self.prompts[2], trajectory=self.ddim[1])[0]

    @functools.cached_property
    def plan(self) -> Any:
        return self.call("PlanClips", frames=self.clip, fps=8.0, length=2)[0]

    def signal(self, kind: str) -> Any:
        """An EDIT_SIGNAL."""
        if kind == "sketch":
            return self.call("SketchSignal", mask=(self.clip[:1, ..., 0] > 0.8).float(), picture=self.clip[:1])[0][0]
        if kind == "drag":
            return self.call("DragSignal", picture=self.clip[:1], points="[[4, 4, 20, 9]]")[0][0]
        return self.call("CoarseSignal", edited=self.clip[1:2], picture=self.clip[:1])[0][0]

    # Files -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def dataset(self) -> Path:
        """A finished set of four pairs, apart from ComfyUI's folders."""
        self.call("ProceduralDataset", name="for_the_stock", count=4, width=32, height=32)
        made = self.sets / "for_the_stock"
        return Path(shutil.move(made, self.folder / "dataset"))

    @property
    def sets(self) -> Path:
        import folder_paths

        return Path(folder_paths.get_output_directory(), "framepainter_datasets")

    def copy_dataset(self, name: str) -> Path:
        """A copy of the set under a name."""
        return shutil.copytree(self.dataset, self.sets / name, dirs_exist_ok=True)

    @functools.cached_property
    def videos(self) -> dict[str, bytes]:
        """Short videos by name, in the containers and codecs that this PyAV writes."""
        import av

        wanted = {"a.mp4": ("libx264", "yuv420p"), "b.mkv": ("libx264", "yuv420p"), "c.webm": ("libvpx-vp9", "yuv420p"),
                  "d.avi": ("mjpeg", "yuvj420p"), "e.mov": ("png", "rgb24"), "f.ts": ("mpeg2video", "yuv420p"),
                  "g.gif": ("gif", "rgb8"), "h.mkv": ("ffv1", "yuv420p")}
        out = {}
        for name, (codec, form) in wanted.items():
            path = self.folder / name
            with av.open(str(path), "w") as file:
                stream = file.add_stream(codec, rate=25)
                stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form
                for i in range(10):
                    pixels = (self.clip[i % FRAMES] * 255).byte().numpy()
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                file.mux(stream.encode())
            out[name] = path.read_bytes()
            path.unlink()
        return out

    @functools.cached_property
    def pictures(self) -> dict[str, bytes]:
        """The same picture in several formats."""
        import io

        from PIL import Image

        image = Image.fromarray((self.clip[0] * 255).byte().numpy())
        out = {}
        for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP"), ("d.bmp", "BMP"), ("e.tif", "TIFF")):
            file = io.BytesIO()
            image.save(file, form)
            out[name] = file.getvalue()
        return out
