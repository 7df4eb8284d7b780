"""The pack's small text-to-image model as one file: UNet, autoencoder, text encoder, and which words it knows.

    model.diffusion_model.*            UNet, ComfyUI's names for Stable Diffusion 1.x
    first_stage_model.*                the small autoencoder
    cond_stage_model.transformer.*     CLIP text encoder, transformers' names; its embedding table holds V rows only
    cond_stage_model.vocabulary        (V,) int32, the CLIP token that each row belongs to; -1 for all tokens without a row
    metadata framepainter.text_heads   heads of the text encoder's attention

A full table would be larger than everything else together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from .framepainter import UNET, VAE, Shapes

TEXT = "cond_stage_model.transformer."
VOCABULARY = "cond_stage_model.vocabulary"
TABLE = "text_model.embeddings.token_embedding.weight"
HEADS = "framepainter.text_heads"
TOKENS, POSITIONS = 49408, 77  # of CLIP's tokenizer; of a prompt
PARTS = {"UNet": UNET, "VAE": VAE, "text encoder": TEXT}


def is_text_to_image(names: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file is of this kind, from its tensors' names and its metadata."""
    return HEADS in metadata and VOCABULARY in names


def whole_table(rows: Tensor, vocabulary: Tensor) -> Tensor:
    """The embedding table for every token: (V, C) rows and (V,) tokens -> (TOKENS, C); unknown tokens share the row of -1."""
    out = rows[int((vocabulary == -1).nonzero())].repeat(TOKENS, 1)
    known = vocabulary >= 0
    out[vocabulary[known].long()] = rows[known]
    return out


def expected_text(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a text encoder whose table and layers are as large as found.

    Raises:
        KeyError: a name that every such file has is missing; its argument is that name.
    """
    layer, norms = "text_model.encoder.layers.{}", ["text_model.final_layer_norm"]
    inner, width = shapes[layer.format(0) + ".mlp.fc1.weight"]
    out = {TABLE: (shapes[TABLE][0], width), "text_model.embeddings.position_embedding.weight": (POSITIONS, width),
           "text_projection.weight": (width, width)}
    for number in range(sum(n.endswith(".mlp.fc1.weight") for n in shapes)):
        here = layer.format(number)
        norms += [f"{here}.layer_norm1", f"{here}.layer_norm2"]
        linear = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        for name, shape in {**linear, "mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}.items():
            out |= {f"{here}.{name}.weight": shape, f"{here}.{name}.bias": shape[:1]}
    return out | {f"{norm}.{leaf}": (width,) for norm in norms for leaf in ("weight", "bias")}
