"""Train the small text-to-image model that the pack ships, from scratch, on captioned scenes (see models/README.md).

    python dev.py text-model STAGE [--folder WORK]

Stages, in their order: latents (the scenes, encoded), text-to-image (UNet and text encoder together; ends with the
checkpoint), decoder (sharpens the autoencoder's decoder for these scenes), write (the checkpoint from all parts). Each resumes
where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import pack as tools_pack  # noqa: E402
import small_model  # noqa: E402
from small_model import Stage  # noqa: E402

FILE = "small_text_to_image.safetensors"
SIDE = 192  # pixels
SCENES = 8000
# Root mean square of the latents. SD's is about 1; but the mean over a plain ground shows even at SD's highest noise level,
# so at that size nothing but the first step would choose the ground's colour, and the prompt would not be asked.
SIZE = 0.5
# From this step on, words are taught to look at what they stand for; the weight of that loss; the smallest side of a map.
GROUNDED_FROM, GROUNDING, LEAST_MAP = 3250, 0.01, 6
OFFSET = 0.1  # standard deviation of noise that all of a picture's latents share, for the same reason
WIDTH = 64  # of the text embeddings
UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 64, "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [1, 1, 1, 1], "transformer_depth": [0, 1, 1, 0], "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1, 1, 1, 0, 0], "context_dim": WIDTH, "use_spatial_transformer": True,
        "legacy": False, "num_heads": 8, "num_head_channels": -1, "use_linear_in_transformer": False}
TEXT = {"hidden_act": "quick_gelu", "hidden_size": WIDTH, "intermediate_size": 128, "num_attention_heads": 2,
        "num_hidden_layers": 2, "max_position_embeddings": 77, "eos_token_id": 49407}
START, END, OTHER = "<start>", "<end>", "<other>"
SAME = {"disc": "circle", "ground": "background"}  # a second word for the same thing
STAGES = {"text-to-image": Stage(5000, 24, 1e-3), "decoder": Stage(1500, 16, 3e-4)}
EMA = 0.999
SHORT = 16  # tokens that hold all words of a caption, with the start token
# Shares of captions: without any word, without the size, without the ground, with second words, with foreign words.
EMPTY, NO_SIZE, NO_GROUND, SECOND, FOREIGN = 0.1, 0.5, 0.25, 0.15, 0.15


# ---- words -----------------------------------------------------------------------------------------------------------


def vocabulary(captions: Any) -> list[str]:
    """All words that the model knows; their place is their row in the embedding table. Row 0 is any other word."""
    named = [OTHER, START, END, "a", "on", "ground", *captions.SIZES, *captions.SUBJECTS, *captions.GROUNDS, *captions.SHAPES,
             *SAME.values()]
    return list(dict.fromkeys(named))


def token_ids(words: list[str]) -> list[int]:
    """The host tokenizer's id of each word; -1 for OTHER. Every word is one token."""
    from comfy.sd1_clip import SDTokenizer

    tokenizer = SDTokenizer().tokenizer
    start, end = tokenizer("")["input_ids"]
    out = {OTHER: -1, START: start, END: end}
    for word in words:
        if word not in out:
            _, out[word], *rest = tokenizer(word)["input_ids"]
            if len(rest) != 1:
                raise ValueError(f"'{word}' is more than one token")
    return [out[word] for word in words]


class Form(NamedTuple):
    """How a caption is put: what it leaves unsaid, its second words, and where foreign words stand."""

    size: bool
    ground: bool
    second: bool
    foreign: tuple[int, ...]


def draw_form(generator: Any) -> Form:
    import torch

    def chance(share: float) -> bool:
        return float(torch.rand(1, generator=generator)) < share

    size, ground, second = not chance(NO_SIZE), not chance(NO_GROUND), chance(SECOND)
    foreign = ()
    if chance(FOREIGN):
        number = int(torch.randint(1, 4, (1,), generator=generator))
        foreign = tuple(torch.randint(0, 4 + size + 4 * ground, (number,), generator=generator).tolist())
    return Form(size, ground, second, foreign)


def put(captions: Any, subjects: Any, index: int, form: Form) -> list[str]:
    """A caption's words in a form."""
    out = captions.words(subjects, index, form.size, form.ground)
    if form.second:
        out = [SAME.get(word, word) for word in out]
    for place in form.foreign:
        out.insert(place, OTHER)
    return out


class Texts(NamedTuple):
    """Rows of the embedding table for a batch; see `context`.

    base: (B, 77).  single: (B, K, SHORT), K words that carry meaning.  place: (B, K) each one's place, 0 for none.
    of_shape: (B, K) bool, whether the word is one of the shape's; else the ground's.
    """

    base: Any
    single: Any
    place: Any
    of_shape: Any


def draw_texts(captions: Any, rows: dict[str, int], subjects: Any, generator: Any) -> Texts:
    """Captions for subjects, in forms drawn at random, taken apart word by word.

    A word's vector could tell of all words before it, and the end token's of the whole caption; then maps of where a word
    looks would mean nothing. So each word's vector is taken from a caption of the same form in which all *other* words are
    drawn again, and those of the end and of words without a meaning of their own from one in which all are. Nothing then
    ties a vector to the picture but the word that it stands for.
    """
    import torch

    count, part = len(subjects.shape), 4
    base = torch.full((count, 77), rows[END])
    single = torch.full((count, part, SHORT), rows[END])
    place, of_shape = torch.zeros(count, part, dtype=torch.long), torch.ones(count, part, dtype=torch.bool)
    base[:, 0] = single[:, :, 0] = rows[START]
    others = captions.draw_subjects(count * (part + 1), generator)
    for b in range(count):
        if float(torch.rand(1, generator=generator)) < EMPTY:
            continue
        form, first = draw_form(generator), b * (part + 1)
        true = put(captions, subjects, b, form)
        again = put(captions, others, first, form)
        base[b, 1:1 + len(again)] = torch.tensor([rows[w] for w in again])
        meaning = [i for i, w in enumerate(true) if w not in ("a", "on", OTHER, "ground", SAME["ground"])]
        for k, i in enumerate(meaning):
            told = put(captions, others, first + 1 + k, form)
            told[i] = true[i]
            single[b, k, 1:1 + len(told)] = torch.tensor([rows[w] for w in told])
            place[b, k] = 1 + i
        of_shape[b, len(meaning) - 1] = not form.ground
    return Texts(base, single, place, of_shape)


# ---- networks --------------------------------------------------------------------------------------------------------


def text_encoder(words: int) -> Any:
    """The host's CLIP text network, small, with an embedding table of that many rows."""
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPTextModel

    model = CLIPTextModel(TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init)
    model.set_input_embeddings(comfy.ops.disable_weight_init.Embedding(words, WIDTH))
    small_model.initialise(model)
    torch.nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.5)
    torch.nn.init.eye_(model.text_projection.weight)
    return small_model.differentiable(model, model.text_model.encoder.layers)


def encode(model: Any, rows: Any) -> Any:
    """(B, n) rows of the embedding table, n <= 77, -> (B, n, WIDTH), as the host encodes the first n tokens."""
    import torch

    inner, length = model.text_model, rows.shape[1]
    x = inner.embeddings.token_embedding(rows) + inner.embeddings.position_embedding.weight[:length]
    mask = torch.full((length, length), -torch.finfo(x.dtype).max).triu_(1)
    return inner.final_layer_norm(inner.encoder(x, mask=mask)[0])


def context(model: Any, texts: Texts) -> Any:
    """The text embeddings (B, 77, WIDTH) of captions that were taken apart."""
    import torch

    base, single = encode(model, texts.base), encode(model, texts.single.flatten(0, 1)).unflatten(0, texts.single.shape[:2])
    for k in range(single.shape[1]):
        here = torch.nn.functional.one_hot(texts.place[:, k], SHORT).bool() & (texts.place[:, k, None] > 0)
        base = torch.cat([torch.where(here[..., None], single[:, k], base[:, :SHORT]), base[:, SHORT:]], 1)
    return base


class WordMaps:
    """Hooks on the cross-attention of a UNet that keep where each token looks, averaged over the heads.

    maps: {L: [(B, L, 77) of each layer with L places]} of the last evaluation.
    """

    def __init__(self) -> None:
        self.maps: dict[int, list] = {}
        blocks = [("middle", 0), *((kind, n) for kind in ("input", "output") for n in range(12))]
        self.options = {"patches_replace": {"attn2": dict.fromkeys(blocks, self._attend)}}

    def _attend(self, q: Any, k: Any, v: Any, extra: dict) -> Any:
        q, k, v = (x.unflatten(-1, (extra["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        probabilities = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).float().softmax(-1)
        self.maps.setdefault(q.shape[-2], []).append(probabilities.mean(1))
        return (probabilities.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def grounding(maps: dict[int, list], cover: Any, texts: Texts, weight: Any) -> Any:
    """How much the words look elsewhere than at what they stand for: mean of (1 - share inside)^2 over layers and words.

    The token loss of TokenCompose (Wang et al., CVPR 2024, equation 3), with exact masks.

    Args:
        cover: (B, 24, 24) how much of each latent the shape covers.  weight: (B,).
    """
    import torch.nn.functional as F

    total, told = 0.0, (texts.place > 0) * weight[:, None]
    for places, layers in maps.items():
        side = round(places**0.5)
        if side < LEAST_MAP:
            continue
        here = (F.adaptive_avg_pool2d(cover[:, None], side) > 0.1).flatten(2)  # (B, 1, L)
        for layer in layers:
            looks = layer.gather(2, texts.place[:, None].expand(-1, places, -1)).transpose(1, 2)  # (B, K, L)
            inside = looks.where(here == texts.of_shape[..., None], 0.0).sum(2) / looks.sum(2)
            total = total + ((1 - inside) ** 2 * told).sum() / told.sum() / len(layers)
    return total


def text_to_image_loss(parts: Any, load: Callable[[str], Any], data: dict, batch: int) -> Callable:
    """Mean squared error of the predicted noise at SD's noise levels, the higher ones a little more often.

    Args:
        parts: "unet" and "text", trained together.  data: see `examples`.
    """
    import torch
    from torch.amp import autocast

    captions = load("core.data.captions")
    rows, watched = {word: i for i, word in enumerate(vocabulary(captions))}, WordMaps()
    kept = torch.tensor(load("core.ddim").cumulative_alphas())

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        chosen = torch.randint(len(data["latents"]), (batch,), generator=generator)
        subjects = captions.Subjects(*data["subjects"][chosen].unbind(1))
        texts = draw_texts(captions, rows, subjects, generator)
        t = (1000 * torch.rand(batch, generator=generator) ** 0.75).long()
        clean, a = data["latents"][chosen].float(), kept[t][:, None, None, None]
        noise = torch.randn(clean.shape, generator=generator)
        noise = noise + OFFSET * torch.randn(batch, 4, 1, 1, generator=generator)
        grounded = step > GROUNDED_FROM
        watched.maps.clear()
        with autocast("cpu", torch.bfloat16):
            told = context(parts.text, texts)
            predicted = parts.unet(a.sqrt() * clean + (1 - a).sqrt() * noise, t, context=told,
                                   transformer_options=watched.options if grounded else {})
        error = (predicted.float() - noise).pow(2).mean((1, 2, 3))
        out = {"loss": error.mean(), "error": error.mean(), "high": error[t >= 500].sum() / (t >= 500).sum().clamp(min=1)}
        if grounded:  # the less noise, the better the network can know where the shape is
            elsewhere = grounding(watched.maps, data["cover"][chosen], texts, 1 - t / 1000)
            out |= {"loss": out["loss"] + GROUNDING * elsewhere, "elsewhere": elsewhere}
        return out

    return loss


# ---- data ------------------------------------------------------------------------------------------------------------


def autoencoder(load: Callable[[str], Any], folder: Path) -> Any:
    """The small models' autoencoder, its latents scaled to these scenes; kept in the work folder."""
    import torch
    from safetensors.torch import load_file, save_file

    path, module = folder / "autoencoder.safetensors", load("core.models.small_autoencoder").SmallAutoencoder()
    if not path.is_file():
        whole = load_file(str(small_model.MODELS / "framepainter_small_base.safetensors"))
        module.load_state_dict({n.removeprefix("first_stage_model."): t.float() for n, t in whole.items()
                                if n.startswith("first_stage_model.")})
        captions, generator = load("core.data.captions"), torch.Generator().manual_seed(1)
        shown = captions.render(captions.draw_scenes(captions.draw_subjects(64, generator), 1, generator), SIDE)[:, 0]
        save_file(small_model.scaled_to(module, shown, SIZE), str(path))
    module.load_state_dict(load_file(str(path)))
    return module


def examples(load: Callable[[str], Any], folder: Path, count: int, seed: int, held: bool = False) -> dict:
    """Latents times SD's factor (N, 4, h, w) in fp16, subjects (N, 4), and how much of each latent the shape covers
    (N, h, w). The latents are kept in the work folder, 200 at a time."""
    import torch
    from safetensors.torch import load_file, save_file

    captions, vae, parts = load("core.data.captions"), autoencoder(load, folder), []
    for number in range(-(-count // 200)):
        path = folder / f"latents-{seed}-{number}.safetensors"
        generator = torch.Generator().manual_seed(seed * 100_000 + number)
        subjects = captions.draw_subjects(min(200, count - 200 * number), generator, held)
        scenes = captions.draw_scenes(subjects, 1, generator)
        if not path.is_file():
            pictures = captions.render(scenes, SIDE)[:, 0]
            with torch.no_grad():
                latents = torch.cat([vae.encode(p * 2 - 1) for p in pictures.split(20)]) * small_model.SCALING
            save_file({"latents": latents.half()}, str(path))
            print(f"latents: {200 * number + len(latents)}/{count}", flush=True)
        cover = captions.coverage(subjects.shape, scenes.centre[:, 0], scenes.radius[:, 0], SIDE // 8)
        parts.append({"latents": load_file(str(path))["latents"], "subjects": torch.stack(list(subjects), 1), "cover": cover})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def decoder_loss(model: Any, load: Callable[[str], Any], batch: int) -> Callable:
    """The decoder alone, on crops of fresh scenes: nothing changes for the UNet."""
    import torch
    from torch.amp import autocast

    captions = load("core.data.captions")

    def loss(step: int, micro: int, generator: torch.Generator) -> dict:
        scenes = captions.draw_scenes(captions.draw_subjects(batch, generator), 1, generator)
        target = around(captions.render(scenes, SIDE)[:, 0], scenes, generator) * 2 - 1
        with torch.no_grad():
            z = model.encode(target)
        noisy = z + 0.03 / small_model.SCALING * torch.randn(z.shape, generator=generator)
        with autocast("cpu", torch.bfloat16):
            decoded = model.decode(noisy)
        return small_model.reconstruction(decoded.float(), target)

    return loss


def around(pictures: Any, scenes: Any, generator: Any, side: int = 80) -> Any:
    """Squares of pictures (B, 3, H, H) somewhere over their shapes: most of a picture is plain ground."""
    import torch

    middle = (scenes.centre[:, 0] + 1) / 2 * pictures.shape[-1] + 30 * torch.randn(len(pictures), 2, generator=generator)
    corner = (middle - side / 2).round().long().clamp(0, pictures.shape[-1] - side).tolist()
    return torch.stack([p[:, y:y + side, x:x + side] for p, (x, y) in zip(pictures, corner, strict=True)])


# ---- running ---------------------------------------------------------------------------------------------------------


def write(load: Callable[[str], Any], folder: Path) -> Path:
    """The checkpoint in fp16, from the averages of the newest state and the autoencoder as it is now."""
    import torch
    from safetensors.torch import save_file

    names, state = load("core.weights.text_to_image"), load("core.training.state")
    tensors, _ = state.load_state(state.states(folder / "text-to-image")[-1], {})
    averages = {n.removeprefix("average/"): t for n, t in tensors.items() if n.startswith("average/")}
    parts = {names.UNET: {n.removeprefix("unet."): t for n, t in averages.items() if n.startswith("unet.")},
             names.TEXT: {n.removeprefix("text."): t for n, t in averages.items() if n.startswith("text.")},
             names.VAE: autoencoder(load, folder).state_dict()}
    tensors = {prefix + n: t.detach().half().contiguous() for prefix, part in parts.items() for n, t in part.items()
               if not n.endswith("position_ids")}
    ids = token_ids(vocabulary(load("core.data.captions")))
    tensors[names.VOCABULARY] = torch.tensor(ids, dtype=torch.int32)
    path = folder / FILE
    save_file(tensors, str(path), metadata={"framepainter.format": "1", names.HEADS: str(TEXT["num_attention_heads"])})
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, {sum(t.numel() for t in tensors.values()) / 1e6:.2f} M", flush=True)
    return path


def train(load: Callable[[str], Any], folder: Path, stage: str) -> None:
    import torch
    from safetensors.torch import save_file

    if stage == "decoder":
        model = autoencoder(load, folder)
        loss = decoder_loss(model, load, STAGES[stage].batch)
        trained = small_model.run_stage("text-decoder", model.decoder, loss, load, folder, 0.998, STAGES[stage])
        model.decoder.load_state_dict(trained.averages)
        save_file(model.state_dict(), str(folder / "autoencoder.safetensors"))
        return
    words = len(vocabulary(load("core.data.captions")))
    parts = torch.nn.ModuleDict({"unet": small_model.unet(UNET), "text": text_encoder(words)})
    parts.text.text_projection.requires_grad_(False)
    loss = text_to_image_loss(parts, load, examples(load, folder, SCENES, 1), STAGES[stage].batch)
    small_model.run_stage(stage, parts, loss, load, folder, EMA, STAGES[stage])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help="ComfyUI's folder")
    parser.add_argument("--folder", type=Path, default=Path("small_text_model"), help="for states and results")
    parser.add_argument("stage", choices=["latents", *STAGES, "write"])
    options = parser.parse_args()
    load = tools_pack.open_pack(options.host.resolve())
    import torch

    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if options.stage == "latents":
        examples(load, options.folder, SCENES, 1)
    elif options.stage == "write":
        write(load, options.folder)
    else:
        with torch.enable_grad():
            train(load, options.folder, options.stage)


if __name__ == "__main__":
    main()
