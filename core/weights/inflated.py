"""Names of the Stable Diffusion 1.x UNet and of what Video-P2P adds to it: diffusers <-> ComfyUI, both directions.

The added parameters keep their names inside the transformer block:
`<block>.attn_temp.{to_q,to_k,to_v,to_out.0}` and `<block>.norm_temp`, seven tensors in each of 16 blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import diffusers_svd
from .diffusers_svd import _RESNET, _RESNET_BACK, Layout, layout_from_diffusers, module_table


def layout_from_comfy(names: Iterable[str]) -> Layout:
    """Read the layout from ComfyUI names (without a `model.diffusion_model.` prefix).

    Raises:
        ValueError: the names are not those of a UNet.
    """
    names = list(names)
    # SVD's reader finds attention by its temporal blocks, which this network does not have.
    marked = {re.sub(r"\.1\.transformer_blocks\.", ".1.time_stack.", name) for name in names}
    return diffusers_svd.layout_from_comfy([*names, *marked])


def to_comfy(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Map diffusers parameter names to ComfyUI's, in the given order.

    Args:
        names: parameter names without prefix, also of a part of the network if the layout is given.
        layout: read from the names if None.

    Raises:
        ValueError: a name that no such UNet has.
    """
    names = list(names)
    table = {old: (new, kind) for old, new, kind in module_table(layout or layout_from_diffusers(names))}
    return _renamed(names, table, _RESNET, "diffusers")


def to_diffusers(names: Iterable[str], layout: Layout | None = None) -> dict[str, str]:
    """Map ComfyUI parameter names to diffusers'; the inverse of `to_comfy`. Same arguments and errors."""
    names = list(names)
    table = {new: (old, kind) for old, new, kind in module_table(layout or layout_from_comfy(names))}
    return _renamed(names, table, _RESNET_BACK, "ComfyUI")


def _renamed(names: list[str], table: dict[str, tuple[str, str]], resnet: dict[str, str], side: str) -> dict[str, str]:
    out, unknown = {}, []
    for name in names:
        pieces = name.split(".")
        # The longest module path that is in the table: `input_blocks.3.0.op` before `input_blocks.3.0`.
        cut = next((n for n in range(len(pieces) - 1, 0, -1) if ".".join(pieces[:n]) in table), 0)
        new, kind = table.get(".".join(pieces[:cut]), ("", ""))
        part, _, leaf = ".".join(pieces[cut:]).rpartition(".")
        if not new or (kind == "resnet" and part not in resnet):
            unknown.append(name)
        elif kind == "resnet":
            out[name] = f"{new}.{resnet[part]}.{leaf}"
        else:
            out[name] = ".".join([new, *pieces[cut:]])
    if unknown:
        raise ValueError(f"{len(unknown)} names have no place in a {side} SD 1.x UNet, the first: {', '.join(unknown[:3])}")
    return out
