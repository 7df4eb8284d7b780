"""Values for the inputs of a node, drawn from its schema: mostly valid ones, so that the code after the checks is reached, mixed
with what a workflow, another node or a program could pass."""

from __future__ import annotations

import json
import random
from typing import Any

from damage import mutated_json

# Inputs whose size is how long the node works or how much it takes; they are kept small nearly always.
COSTLY = {"steps": 3, "lora_steps": 2, "count": 4, "pairs_per_video": 2, "iterations": 2, "preview_every": 2, "save_every": 3,
          "rank": 4, "sheet_rows": 4, "frames": 5, "length": 4, "batch": 2, "accumulate": 2, "map_scale": 2, "drag_points": 4,
          "longer_side": 64, "max_sprites": 3, "texture": 6, "window": 4, "budget_gb": 1}
SIDES = (1, 2, 3, 7, 8, 16, 24, 31, 32, 33, 48, 64, 65)
ODD_FLOATS = (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, -0.0, 1e-12)
NAMES = ("edit", "folder/edit", "v1.5", "style v1.5", "..", "../up", "a/../../up", "/tmp/abs", "C:\\x", "con", "nul.txt",
         "a" * 300, "\u00e9\u65e5\u672c", "x\0y", "\ud800", "new\nline", "tab\t", " ", "", ".", "./.", "a//b", "a\\b",
         "%date:yyyy%", "%year%", "name.", ".hid", "-rf", "~", "$HOME", "a:b", "*?", "\u202e", "a/" * 60,
         "%width%", "%", "{}", "{0}", "'\"")
TEXTS = ("", " ", "a red disc on a green ground", "a (red:1.2) disc, on a green ground", "a blue square on a green ground",
         "((((", "))", "(a:nan)", "(a:1e999) b", "\\(a\\)", "a\n\nb", "\u65e5\u672c\u306e \u732b", "\ud83d\ude00 smile",
         "\ud800", "x" * 2000, "word " * 200, "<|endoftext|> a", "a\0b", "embedding:none a", "{a|b}", "BREAK", "a  b",
         "\u00a0a", "AND a")
WORDS = ("", "@disc", "@square\n@disc", "disc > square", "red > blue, disc > square", "square *2", "square *nan", "square *1e999",
         "square 0..0.4", "square 0.9..0.1", "square -1..2", "@x", "-@green", "+blue", "+", ">", "a > ", "#", "disc#0",
         "disc#99999999999", "@" * 100, "disc *", "disc > disc > disc", "\ud800", "a\0", ",,,;;;", "square *101",
         "red disc > blue square *2 0..0.5", "{", "[")
STATES = {
    "strokes": {"version": 1, "width": 48, "height": 32, "strokes": [
        {"tool": "brush", "size": 6, "points": [5, 5, 20.5, 20]}, {"tool": "eraser", "size": 3, "points": [8, 8]}]},
    "points": {"version": 1, "width": 48, "height": 32, "drags": [[4, 3, 30, 20], [9, 9, 9, 20]]},
    "pieces": {"version": 1, "width": 48, "height": 32, "background": "fill", "pieces": [
        {"outline": [4, 4, 20, 4, 20, 20, 4, 20], "move": [12, 0], "scale": [1.5, 1], "rotate": 30, "copy": False, "delete": False},
        {"outline": [4, 4, 10, 4, 10, 10], "delete": True}]},
    "words": {"version": 1, "source": [{"at": 2, "word": "disc", "blend": True}],
              "edited": [{"at": 2, "word": "square", "state": "swapped", "from": [2], "weight": 2, "steps": [0, 0.4], "blend": True,
                          "away": False}]},
    "tracks": [[{"x": 4, "y": 4}, {"x": 6.5, "y": 5}, {"x": 9, "y": 6}], [[20, 10], [22, 10], None]],
}
CHANCE = 0.12  # that a value is not a usable one


class Values:
    """Draws the inputs of one call.

    Args:
        stock: sound things.
        dice: everything follows from it.
    """

    def __init__(self, stock: Any, dice: random.Random):
        self.stock, self.dice, self.torch = stock, dice, stock.torch
        self.chance = dice.choice((0.0, 0.01, 0.04, CHANCE, 0.4))
        self.size = dice.choice(((32, 48), (32, 48), (64, 64), (dice.choice(SIDES), dice.choice(SIDES))))
        self.count = dice.choice((1, 1, 1, 2, 3))
        self.family = dice.choice(("svd", "text"))
        self.within = True  # all pictures so far are in [0, 1]

    def odd(self) -> bool:
        return self.dice.random() < self.chance

    def inputs(self, schema: Any) -> dict[str, Any]:
        """Values for the inputs of a node; optional ones are often left out."""
        types = {socket.io_type for socket in schema.inputs}
        if "CLIP_VISION" in types or "FRAMEPAINTER" in types or "EDIT_SIGNAL" in types:
            self.family = "svd" if self.dice.random() < 0.95 else "text"
        if types & {"EDIT_PLAN", "NULL_TEXT", "TUNED_VIDEO", "CLIP"} or "DDIM" in schema.node_id or schema.node_id.endswith((
                "VideoTextModel", "TuneOnVideo", "WordMap", "NullText")):
            self.family = "text" if self.dice.random() < 0.95 else "svd"
        self.patched = schema.node_id.endswith(("WordMap", "DifferenceMask")) or self.dice.random() < 0.05
        out = {}
        for socket in schema.inputs:
            if socket.optional and self.dice.random() < 0.4:
                continue
            value = self.value(socket, schema.node_id)
            out[socket.id] = [value] if schema.is_input_list else value
        return out

    def value(self, socket: Any, node: str) -> Any:
        kind = socket.io_type
        if kind == "INT":
            return self.integer(socket)
        if kind == "FLOAT":
            return self.number(socket)
        if kind == "BOOLEAN":
            return self.dice.random() < 0.5
        if kind == "COMBO":
            return self.choice(socket)
        if kind == "STRING":
            return self.text(socket.id)
        return self.tracks() if kind == "COMFY_MULTITYPED_V3" else getattr(self, kind.lower())()

    # Widgets ----------------------------------------------------------------------------------------------

    def integer(self, socket: Any) -> int:
        low, high = socket.min if socket.min is not None else 0, socket.max if socket.max is not None else 2**31
        if socket.id in ("width", "height"):
            usable = self.dice.choice((self.size[socket.id == "width"], 64, 64, 64))
            return usable if self.dice.random() < 0.95 else self.dice.choice((low, low - 1, 0, -8, 8, 33, high + 1))
        if socket.id in COSTLY:
            usable = self.dice.randint(max(0, low), max(low, COSTLY[socket.id]))
            return usable if not self.odd() else self.dice.choice((low, low - 1, 0, -1))
        if self.odd():
            return self.dice.choice((low, high, low - 1, high + 1, -1, 0, 2**31, 2**63, -(2**63), 2**64 + 1))
        near = min(high, low + self.dice.choice((1, self.dice.randrange(100))))
        return self.dice.choice((socket.default, socket.default, socket.default, low, near))

    def number(self, socket: Any) -> float:
        low, high = socket.min if socket.min is not None else -1e6, socket.max if socket.max is not None else 1e6
        if self.odd():
            return self.dice.choice((*ODD_FLOATS, low, high, low - 1, high + 1, 0.0, 1))
        near = self.dice.choice((min(high, low + 1.0), self.dice.uniform(low, min(high, low + 5))))
        return self.dice.choice((socket.default,) * 6 + (low, near))

    def choice(self, socket: Any) -> str:
        options = list(socket.options or [])
        return self.dice.choice(options) if options and not self.odd() else self.dice.choice(("", "none", *NAMES))

    def text(self, name: str) -> str:
        if name in STATES and self.dice.random() < 0.8:
            text = json.dumps(STATES[name])
            return text if self.dice.random() < 0.5 else mutated_json(text, self.dice)
        if name == "words":
            return self.dice.choice(WORDS)
        if name.endswith("_text") and not self.odd():
            return self.dice.choice(TEXTS[2:5])
        if name.endswith("_text"):
            return self.dice.choice(TEXTS)
        if name == "dataset":
            self.stock.copy_dataset("sound")
            return "sound" if not self.odd() else self.dice.choice(NAMES)
        if name == "videos":
            return self.dice.choice(("", "", "films", *NAMES))
        return self.dice.choice(("edit", "folder/edit", "v1.5") if not self.odd() else NAMES)

    # Pictures -----------------------------------------------------------------------------------------------

    def image(self) -> Any:
        torch = self.torch
        height, width = self.size if self.dice.random() < 0.9 else (self.dice.choice(SIDES), self.dice.choice(SIDES))
        count = self.count if self.dice.random() < 0.9 else self.dice.choice((1, 2, 3, 5))
        generator = torch.Generator().manual_seed(self.dice.randrange(2**31))
        kind = self.dice.choice(("clip", "clip", "noise", "zero", "one"))
        if kind == "clip":
            whole = self.stock.clip[torch.arange(count) % len(self.stock.clip)].movedim(-1, 1)
            out = torch.nn.functional.interpolate(whole, size=(height, width), mode="nearest").movedim(1, -1).clone()
        else:
            out = torch.rand(count, height, width, 3, generator=generator) if kind == "noise" else torch.full(
                (count, height, width, 3), float(kind == "one"))
        return self.spoiled(out) if self.odd() else out

    def spoiled(self, x: Any) -> Any:
        """A picture or a mask in a form that other nodes give, or in none."""
        torch, dice = self.torch, self.dice
        kind = dice.randrange(14)
        if kind == 0:
            x.view(-1)[dice.randrange(x.numel())] = dice.choice((float("nan"), float("inf"), -float("inf")))
        elif kind == 1:
            x = torch.full_like(x, float("nan"))
        elif kind == 2:
            self.within, x = False, x * dice.choice((-1.0, 3.0, 1e30, 255.0))
        elif kind == 3:
            x = x.to(dice.choice((torch.float16, torch.bfloat16, torch.float64)))
        elif kind == 4:
            x = (x * 255).byte()
        elif kind == 5:
            x = x > 0.5
        elif kind == 6:
            x = x[0]
        elif kind == 7:
            x = x[None]
        elif kind == 8:
            x = torch.cat([x, x[..., :1]], -1)
        elif kind == 9:
            x = x[..., :1] if x.ndim == 4 else x[:, None]
        elif kind == 10:
            x = x[..., :2]
        elif kind == 11:
            x = x[:0] if dice.random() < 0.5 else x[:, :0]
        elif kind == 12:
            x = x.transpose(1, 2)
        else:
            x = x[:, ::2, ::2].expand(dice.choice((1, len(x))), *x[:, ::2, ::2].shape[1:]) if len(x) == 1 else x.flip(0)
        return x

    def mask(self) -> Any:
        torch = self.torch
        height, width = self.size if self.dice.random() < 0.85 else (self.dice.choice(SIDES), self.dice.choice(SIDES))
        out = torch.zeros(self.count, height, width)
        kind = self.dice.choice(("box", "box", "empty", "full", "soft"))
        if kind == "box":
            out[:, height // 4:height // 2 + 1, width // 4:width // 2 + 1] = 1
        elif kind == "full":
            out += 1
        elif kind == "soft":
            out += torch.linspace(0, 1, width)
        return self.spoiled(out) if self.odd() else out

    # What other nodes make ------------------------------------------------------------------------------------

    def model(self) -> Any:
        if self.family == "svd":
            return self.stock.matched if self.patched else self.stock.svd.model
        if self.patched:
            return self.stock.prompted
        return self.stock.text.model if self.dice.random() < 0.3 else self.stock.video_text

    def framepainter(self) -> Any:
        return self.stock.svd.weights

    def clip_vision(self) -> Any:
        return self.stock.svd.clip_vision

    def vae(self) -> Any:
        return self.stock.svd.vae if self.family == "svd" or self.dice.random() < 0.1 else self.stock.text.vae

    def clip(self) -> Any:
        return self.stock.text.clip

    def conditioning(self) -> Any:
        sound = (self.stock.source[0], self.stock.edit[0], self.stock.edit[1]) if self.family == "svd" else (
            *self.stock.prompts[:2], self.stock.empty)
        value = self.dice.choice(sound)
        if not self.odd():
            return value
        embedding, settings = value[0]
        dropped = dict(settings)
        if dropped:
            dropped.pop(self.dice.choice(sorted(dropped)))
        return self.dice.choice(([], value * 2, [[embedding, dropped]], [[embedding * float("nan"), settings]], [[embedding, {}]],
                                 [[embedding[..., :-1], settings]], [[embedding[:, :0], settings]]))

    def latent(self) -> Any:
        sound = (self.stock.source[1], self.stock.edit[2], self.stock.edm[0]) if self.family == "svd" else (
            self.stock.text_latent, self.stock.ddim[0])
        value = dict(self.dice.choice(sound))
        samples = value["samples"]
        if self.odd():
            kind = self.dice.randrange(9)
            value["samples"] = (samples[:1], samples[:0], samples[0], samples[None], samples * float("nan"), samples[:, :3],
                                samples[..., :1], samples.half(), self.torch.cat([samples] * 4, 1))[kind]
        if self.odd():
            value["noise_mask"] = self.mask()
        return value

    def trajectory(self) -> Any:
        return (self.stock.edm if (self.family == "svd") != self.odd() else self.stock.ddim)[1]

    def edit_signal(self) -> Any:
        return self.stock.signal(self.dice.choice(("sketch", "drag", "coarse")))

    def attention_record(self) -> Any:
        return self.stock.record

    def edit_plan(self) -> Any:
        return self.stock.prompts[2]

    def null_text(self) -> Any:
        return self.stock.null_text

    def tuned_video(self) -> Any:
        return self.stock.tuned

    def lora_model(self) -> Any:
        lora = dict(self.stock.lora)
        name = self.dice.choice(sorted(lora))
        if self.odd():
            zeros = self.torch.zeros
            lora[name] = self.dice.choice((lora[name] * float("nan"), zeros(0, 4), zeros(3), lora[name].half()))
        if self.odd():
            lora.pop(name)
        return lora if not self.odd() else {}

    def clip_plan(self) -> Any:
        return self.stock.plan

    def sigmas(self) -> Any:
        sound = self.torch.tensor([20.0, 3.0, 0.5, 0.0])
        if not self.odd():
            return sound
        return self.dice.choice((sound[:0], sound[:1], sound.flip(0), sound * float("nan"), sound[None], sound - 5, sound.double(),
                                 self.torch.ones(4), self.torch.tensor([float("inf"), 1.0, 0.0])))

    def audio(self) -> Any:
        rate = self.dice.choice((8000, 44100)) if not self.odd() else self.dice.choice((0, -1, 1, 10**9))
        wave = self.torch.zeros(1, self.dice.choice((1, 2, 6)), self.dice.choice((0, 1, 800, 8000)))
        return None if self.odd() else {"waveform": wave if not self.odd() else wave * float("nan"), "sample_rate": rate}

    def video(self) -> Any:
        """A video made by nodes; files are attacked as files."""
        from fractions import Fraction

        from comfy_api.latest import InputImpl, Types

        rate = self.dice.choice((Fraction(24), Fraction(30000, 1001))) if not self.odd() else self.dice.choice(
            (Fraction(1, 1000), Fraction(100000), Fraction(1)))
        parts = Types.VideoComponents(images=self.image(), audio=self.audio(), frame_rate=rate)
        return InputImpl.VideoFromComponents(parts)

    def optical_flow(self) -> Any:
        """A model of newer hosts; the pinned one has none to give."""
        return None

    def flow(self) -> Any:
        torch = self.torch
        count, (height, width) = max(1, self.count - 1), self.size
        sound = torch.randn(count, height, width, 2, generator=torch.Generator().manual_seed(self.dice.randrange(2**31)))
        if not self.odd():
            return sound
        return self.dice.choice((sound[0], sound[:0], sound * float("nan"), sound.movedim(-1, 1), sound.numpy(), sound.tolist()[:1],
                                 None, "x", sound * 1e30, {"flow": sound}))

    def tracks(self) -> Any:
        torch, dice = self.torch, self.dice
        path = torch.rand(self.count, 5, 2, generator=torch.Generator().manual_seed(dice.randrange(2**31))) * 30
        text = json.dumps(STATES["tracks"])
        if not self.odd():
            return dice.choice(({"track_path": path, "track_visibility": torch.ones(self.count, 5)}, path, text))
        return dice.choice((mutated_json(text, dice), {"track_path": path[:0]}, path[None], path[..., :1], {}, "", "null", [],
                            {"track_path": path * float("inf"), "track_visibility": torch.ones(2, 2)}, [mutated_json(text, dice)]))


def described(value: Any) -> Any:
    """A value for a person and for JSON."""
    if type(value).__module__ == "torch":
        numbers = value.flatten()[:4].tolist() if value.numel() else []
        return f"{value.dtype} {list(value.shape)} {numbers}"
    if isinstance(value, dict):
        return {str(k)[:80]: described(v) for k, v in list(value.items())[:12]}
    if isinstance(value, list | tuple):
        return [described(v) for v in value[:8]]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__
