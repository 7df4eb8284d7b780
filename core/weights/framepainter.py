"""The contents of FramePainter weight files, recognised from tensor names and shapes alone.

Three kinds of file make a model: the authors' UNet (diffusers names, `sparse_attention` entries beside `attn1`), the
authors' control encoder, and this pack's single file, which holds everything:

    model.diffusion_model.*                            UNet, ComfyUI names (so core sees an SVD checkpoint)
    framepainter.matching.<spatial block path>.to_q.*  matching attention
    framepainter.encoder.*                             control encoder
    first_stage_model.*, conditioner.embedders.0.open_clip.model.visual.*     VAE and CLIP vision, optional
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from . import diffusers_svd

UNET = "model.diffusion_model."
MATCHING = "framepainter.matching."
ENCODER = "framepainter.encoder."
VAE = "first_stage_model."
CLIP_VISION = "conditioner.embedders.0.open_clip.model.visual."

_MARK = ".sparse_attention."
Shapes = Mapping[str, tuple[int, ...]]

FileKind = Literal["framepainter unet", "svd unet", "encoder", "single file", "svd checkpoint", "sdxl checkpoint",
                   "sd checkpoint", "other"]


class UNetNames(NamedTuple):
    """Where each tensor of a file goes: UNet parameter -> file's name, matching parameter -> file's name."""

    unet: dict[str, str]
    matching: dict[str, str]
    layout: diffusers_svd.Layout


def file_kind(shapes: Shapes) -> FileKind:
    """The kind of a weight file."""
    has = shapes.__contains__
    if any(name.startswith(MATCHING) for name in shapes):
        return "single file"
    if has("mid_convs.1.weight") and has("down_res.0.conv1.weight"):
        return "encoder"
    if has("down_blocks.0.resnets.0.spatial_res_block.conv1.weight"):
        return "framepainter unet" if any(_MARK in name for name in shapes) else "svd unet"
    if any(name.startswith(UNET) for name in shapes):
        if any(".time_stack." in name for name in shapes):
            return "svd checkpoint"
        return "sdxl checkpoint" if any(".1.transformer_blocks.9." in n for n in shapes) else "sd checkpoint"
    return "other"


def split_diffusers_unet(names: Iterable[str]) -> UNetNames:
    """Sort a diffusers-named FramePainter UNet into UNet and matching parameters, in ComfyUI naming.

    Raises:
        ValueError: a name that no such network has.
    """
    names = list(names)
    plain = [n for n in names if _MARK not in n]
    layout = diffusers_svd.layout_from_diffusers(plain)
    # The branch sits beside attn1: name it as attn1 to map its place, and drop that part of the path.
    matching = {n: n.replace(_MARK, ".attn1.") for n in names if _MARK in n}
    placed = diffusers_svd.to_comfy(matching.values(), layout)
    return UNetNames(
        {new: old for old, new in diffusers_svd.to_comfy(plain, layout).items()},
        {placed[stand_in].replace(".attn1.", "."): n for n, stand_in in matching.items()},
        layout,
    )


def join_diffusers_unet(unet: Iterable[str], matching: Iterable[str]) -> dict[str, str]:
    """The inverse: ComfyUI-side names -> diffusers names; matching names come prefixed with `MATCHING`.

    Raises:
        ValueError: a name that no such network has.
    """
    unet = list(unet)
    layout = diffusers_svd.layout_from_comfy(unet)
    out = dict(diffusers_svd.to_diffusers(unet, layout))
    for name in matching:
        path, _, leaf = name.partition(".to_")
        stand_in = f"{path}.attn1.to_{leaf}"
        out[MATCHING + name] = diffusers_svd.to_diffusers([stand_in], layout)[stand_in].replace(".attn1.", _MARK)
    return out


def split_single_file(names: Iterable[str]) -> UNetNames:
    """Sort the UNet and matching parameters of this pack's single file."""
    names = list(names)
    unet = {n[len(UNET):]: n for n in names if n.startswith(UNET)}
    matching = {n[len(MATCHING):]: n for n in names if n.startswith(MATCHING)}
    return UNetNames(unet, matching, diffusers_svd.layout_from_comfy(unet))


def split_svd_checkpoint(names: Iterable[str]) -> UNetNames:
    """Sort the UNet parameters of a Stable Video Diffusion checkpoint, which has no matching attention."""
    unet = {n[len(UNET):]: n for n in names if n.startswith(UNET)}
    return UNetNames(unet, {}, diffusers_svd.layout_from_comfy(unet))


def spatial_sites(unet: Shapes) -> dict[str, int]:
    """Spatial transformer blocks of a UNet in ComfyUI naming: path -> width. The sites of matching attention."""
    tail = ".attn1.to_q.weight"
    return {n.removesuffix(tail): s[0] for n, s in unet.items() if n.endswith(".transformer_blocks.0" + tail)}


def differences(expected: Shapes, found: Shapes) -> list[str]:
    """Every way in which found tensors are not the expected ones, as short sentences; empty if they agree."""
    out = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in found]
    out += [f"unexpected {name} {list(shape)}" for name, shape in found.items() if name not in expected]
    out += [f"{name} is {list(found[name])}, expected {list(shape)}" for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)]
    return out
