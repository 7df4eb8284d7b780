"""Golden cases of Video-P2P: networks by their names here, tensors with frames folded into the batch, tolerances."""

from __future__ import annotations

from typing import Any

import torch
from framepainter_tests.golden import WEIGHTS, Case
from framepainter_tests.golden import of_kind as of_system_and_kind
from torch import Tensor

KINDS = ("frame_attention", "temporal_attention", "transformer_block", "resnet_block", "unet3d_forward", "tuning_step",
         "ddim_inversion", "null_text", "word_alignment", "local_blend", "controlled_sampling")


def of_kind(kind: str) -> list[Case]:
    """The cases of a kind."""
    return of_system_and_kind("videop2p", kind)


def network(case: Case) -> dict[str, Tensor]:
    """The parameters of a case's network, under the released names."""
    given = case.info["network"]
    manifest = WEIGHTS.load_manifest(case.folder.parent / given["manifest"])
    return {n: torch.from_numpy(v.copy()) for n, v in WEIGHTS.state_dict(manifest, given["salt"]).items()}


def unet(pack: Any, case: Case) -> dict[str, Tensor]:
    """The parameters of a whole UNet, under ComfyUI's names."""
    tensors = network(case)
    names = pack("core.weights.inflated").to_comfy(tensors)
    return {names[n]: t for n, t in tensors.items()}


def rows(video: Tensor) -> Tensor:
    """(V, C, F, h, w) -> (V*F, C, h, w)."""
    return video.movedim(2, 1).flatten(0, 1)


def video(rows: Tensor, videos: int = 1) -> Tensor:
    """(V*F, C, h, w) -> (V, C, F, h, w)."""
    return rows.unflatten(0, (videos, -1)).movedim(1, 2)


def check(case: Case, name: str, found: Tensor) -> None:
    """Compare an output with the recorded one, at the tolerance that the case states."""
    expected, tolerance = case.tensors[name], case.info["outputs"][name]["tolerance"]
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} against {tuple(expected.shape)}"
    difference = (found.double() - expected.double()).abs().flatten()
    worst, rms = float(difference.max()), float(difference.pow(2).mean().sqrt())
    assert worst <= tolerance["max_abs"], f"{name}: max {worst:.2e}, allowed {tolerance['max_abs']:.2e}"
    assert rms <= tolerance["rms"], f"{name}: rms {rms:.2e}, allowed {tolerance['rms']:.2e}"
    if "trimmed_rms" in tolerance:
        kept = difference.sort().values[:len(difference) - max(4, len(difference) // 1000)]
        trimmed = float(kept.pow(2).mean().sqrt())
        assert trimmed <= tolerance["trimmed_rms"], f"{name}: trimmed rms {trimmed:.2e}, allowed {tolerance['trimmed_rms']:.2e}"
