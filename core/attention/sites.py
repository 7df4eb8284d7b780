"""Where a video network's attentions are, in running order, and at what size."""

from __future__ import annotations

from typing import NamedTuple

from ..weights.diffusers_svd import Layout, module_table


class Site(NamedTuple):
    """One pair of spatial and temporal attention.

    path: of the transformer, ComfyUI naming.  stage: "down", "mid" or "up".  position: counted within its stage.
    scale: how many times fewer tokens a side than the latent has.
    """

    path: str
    stage: str
    position: int
    scale: int


def attention_sites(layout: Layout) -> list[Site]:
    """All sites of a network, in running order: down, mid, up."""
    out: list[Site] = []
    step = layout.res_blocks + 1
    for _, path, kind in module_table(layout):
        if kind != "attention":
            continue
        part, number = path.split(".")[:2]
        if part == "middle_block":
            stage, level = "mid", layout.levels - 1
        elif part == "input_blocks":
            stage, level = "down", (int(number) - 1) // step
        else:
            stage, level = "up", layout.levels - 1 - int(number) // step
        out.append(Site(path, stage, sum(site.stage == stage for site in out), 2**level))
    return out


def coarse_sites(sites: list[Site], scale: int) -> set[str]:
    """Paths of the sites that the temporal selector's second stage still replaces: those at 1 / scale and smaller.

    On the way up there are as many as on the way down (the first ones), as released: of the three blocks at 1/4 two.
    """
    down = [s for s in sites if s.stage == "down" and s.scale >= scale]
    up = [s for s in sites if s.stage == "up" and s.scale >= scale][:len(down)]
    mid = [s for s in sites if s.stage == "mid" and s.scale >= scale]
    return {s.path for s in (*down, *mid, *up)}
