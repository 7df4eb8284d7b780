"""Names of the Stable Video Diffusion UNet: diffusers <-> ComfyUI (the original SVD code's names), both directions.

The two namings differ only in where a module sits and in what a residual block calls its parts, so the whole map is a
table of module prefixes plus two short tables of inner names. It is built from the network's own layout (levels,
residual blocks a level, which levels have attention), which is read from the names of either side, so the
320/640/1280/1280 network and a small one go through the same code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Of a temporal transformer block, in the order of I2VEdit's files.
TEMPORAL = ("ff_in.net.0.proj", "ff_in.net.2", *(f"attn{n}.{leaf}" for n in (1, 2) for leaf in ATTENTION),
            "ff.net.0.proj", "ff.net.2")
# Inside a residual block. diffusers splits it in two halves; ComfyUI keeps the temporal half under `time_stack`.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
# Inside an attention module.
_ATTENTION = {
    "temporal_transformer_blocks": "time_stack",
    "time_pos_embed.linear_1": "time_pos_embed.0",
    "time_pos_embed.linear_2": "time_pos_embed.2",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET_BACK = {v: k for k, v in _RESNET.items()}
_ATTENTION_BACK = {v: k for k, v in _ATTENTION.items()}


class Layout(NamedTuple):
    """What the names alone say about a network.

    res_blocks: residual blocks in one down level (an up level has one more).
    down_attention, up_attention: for each level, in running order, whether its residual blocks are followed by attention.
    """

    res_blocks: int
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]

    @property
    def levels(self) -> int:
        return len(self.down_attention)

    @property
    def injection_block(self) -> int:
        """Number of the input block that ends the first level, its downsampler (3 in the released network)."""
        return self.res_blocks + 1


def layout_from_diffusers(names: Iterable[str]) -> Layout:
    """Read the layout from diffusers names.

    Raises:
        ValueError: the names are not those of a diffusers SVD UNet.
    """
    names = list(names)
    res = {(int(m[1]), int(m[2])) for n in names if (m := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", n))}
    if not res:
        raise ValueError("no down_blocks.*.resnets.* names: not a diffusers UNet")
    levels = 1 + max(level for level, _ in res)
    res_blocks = 1 + max(j for level, j in res if level == 0)
    attention = {m[1] for n in names if (m := re.match(r"((?:down|up)_blocks\.\d+)\.attentions\.", n))}
    return Layout(
        res_blocks,
        tuple(f"down_blocks.{i}" in attention for i in range(levels)),
        tuple(f"up_blocks.{i}" in attention for i in range(levels)),
    )


def layout_from_comfy(names: Iterable[str]) -> Layout:
    """Read the layout from ComfyUI names (without a `model.diffusion_model.` prefix).

    Raises:
        ValueError: the names are not those of an SVD UNet.
    """
    names = list(names)
    downsamplers = sorted({int(m[1]) for n in names if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", n))})
    if not downsamplers:
        raise ValueError("no input_blocks.*.0.op names: not a ComfyUI UNet with downsamplers")
    res_blocks = downsamplers[0] - 1
    levels = len(downsamplers) + 1
    attention = {(m[1], int(m[2])) for n in names if (m := re.match(r"(input|output)_blocks\.(\d+)\.1\.time_stack\.", n))}
    step = res_blocks + 1
    return Layout(
        res_blocks,
        tuple(("input", i * step + 1) in attention for i in range(levels)),
        tuple(("output", i * step) in attention for i in range(levels)),
    )


def module_table(layout: Layout) -> list[tuple[str, str, str]]:
    """All modules of a network as (diffusers prefix, ComfyUI prefix, kind); kind is resnet, attention or plain."""
    table = [(a, b, "plain") for a, b in _OUTSIDE.items()]
    step = layout.res_blocks + 1
    for i, attention in enumerate(layout.down_attention):
        for j in range(layout.res_blocks):
            table.append((f"down_blocks.{i}.resnets.{j}", f"input_blocks.{i * step + j + 1}.0", "resnet"))
            if attention:
                table.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{i * step + j + 1}.1", "attention"))
        if i < layout.levels - 1:
            table.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{(i + 1) * step}.0.op", "plain"))
    table += [
        ("mid_block.resnets.0", "middle_block.0", "resnet"),
        ("mid_block.attentions.0", "middle_block.1", "attention"),
        ("mid_block.resnets.1", "middle_block.2", "resnet"),
    ]
    for i, attention in enumerate(layout.up_attention):
        for j in range(step):
            table.append((f"up_blocks.{i}.resnets.{j}", f"output_blocks.{i * step + j}.0", "resnet"))
            if attention:
                table.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{i * step + j}.1", "attention"))
        if i < layout.levels - 1:
            # The upsampler is the last module of its block, so its place depends on whether attention precedes it.
            place = 2 if attention else 1
            conv = f"output_blocks.{i * step + layout.res_blocks}.{place}.conv"
            table.append((f"up_blocks.{i}.upsamplers.0.conv", conv, "plain"))
    return table


def _inner_to_comfy(kind: str, inner: str) -> str:
    if kind == "resnet":
        half, _, rest = inner.partition(".")
        if half == "time_mixer":
            return inner
        part, _, leaf = rest.rpartition(".")
        return {"spatial_res_block": "", "temporal_res_block": "time_stack."}[half] + f"{_RESNET[part]}.{leaf}"
    if kind == "attention":
        for old, new in _ATTENTION.items():
            if inner.startswith(old + "."):
                return new + inner[len(old):]
    return inner


def _inner_to_diffusers(kind: str, inner: str) -> str:
    if kind == "resnet":
        if inner.startswith("time_mixer."):
            return inner
        half = "temporal_res_block" if inner.startswith("time_stack.") else "spatial_res_block"
        part, _, leaf = inner.removeprefix("time_stack.").rpartition(".")
        return f"{half}.{_RESNET_BACK[part]}.{leaf}"
    if kind == "attention":
        for old, new in _ATTENTION_BACK.items():
            if inner.startswith(old + "."):
                return new + inner[len(old):]
    return inner


def _rename(names: Iterable[str], table: list[tuple[str, str, str]], inner, side: str) -> dict[str, str]:
    # The longest prefix wins, so that `output_blocks.1.` cannot catch `output_blocks.10.` (the dot already forbids
    # that) nor `input_blocks.3.0` a name under `input_blocks.3.0.op`.
    places = sorted(table, key=lambda row: -len(row[0]))
    out, unknown = {}, []
    by_head: dict[str, list[tuple[str, str, str]]] = {}
    for row in places:
        by_head.setdefault(row[0].split(".")[0], []).append(row)
    for name in names:
        for old, new, kind in by_head.get(name.split(".")[0], []):
            if name.startswith(old + "."):
                try:
                    out[name] = f"{new}.{inner(kind, name[len(old) + 1:])}"
                except KeyError:
                    unknown.append(name)
                break
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{len(unknown)} names have no place in {side} SVD UNet, the first: {', '.join(unknown[:3])}")
    return out


def to_comfy(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Map diffusers parameter names to ComfyUI's.

    Args:
        names: parameter names without prefix.
        layout: the network's layout; read from the names if None.

    Returns:
        name -> ComfyUI name, in the given order. Distinct names stay distinct.

    Raises:
        ValueError: a name that no SVD UNet of this layout has.
    """
    names = list(names)
    table = module_table(layout or layout_from_diffusers(names))
    return _rename(names, table, _inner_to_comfy, "a diffusers")


def to_diffusers(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Map ComfyUI parameter names to diffusers'; the inverse of `to_comfy`. Same arguments and errors."""
    names = list(names)
    table = [(b, a, kind) for a, b, kind in module_table(layout or layout_from_comfy(names))]
    return _rename(names, table, _inner_to_diffusers, "a ComfyUI")


def diffusers_epsilon_norms(layout: Layout) -> list[str]:
    """ComfyUI names of the GroupNorms whose epsilon differs between the two implementations.

    diffusers uses 1e-6 in the residual blocks (both halves) of the down levels that have attention and of all up
    levels; ComfyUI and the original code use 1e-5. The middle and the attention-free down level agree at 1e-5.
    72 norms in the released network. Weights trained with diffusers want diffusers' value.
    """
    blocks = []
    step = layout.res_blocks + 1
    for i, attention in enumerate(layout.down_attention):
        if attention:
            blocks += [f"input_blocks.{i * step + j + 1}.0" for j in range(layout.res_blocks)]
    blocks += [f"output_blocks.{k}.0" for k in range(layout.levels * step)]
    parts = ("in_layers.0", "out_layers.0", "time_stack.in_layers.0", "time_stack.out_layers.0")
    return [f"{block}.{part}" for block in blocks for part in parts]
