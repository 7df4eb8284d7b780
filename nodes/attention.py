"""Matching Attention, Correspondence Map."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..core.attention import correspondence
from ..core.placement import CELL, canvas_in_picture, off_canvas, on_canvas, placed_size
from ..core.signals.area import moved_area
from ..host.attention.correspondence import look
from ..host.attention.matching import attach_matching
from ..host.conditioning import check_latent
from .schema import FramePainterType, advanced, check_choice, schema

SEMANTICS = ["release", "paper", "cross-frame", "off"]
LEVELS = {"fine (1/8)": 0, "medium (1/16)": 1, "coarse (1/32)": 2}
GREEN, RED = (0.2, 1.0, 0.3), (1.0, 0.25, 0.2)


class MatchingAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterMatchingAttention",
            display_name="FramePainter Matching Attention",
            description="Lets edited tokens attend to source tokens in every spatial block of an SVD model. Load FramePainter "
                        "attaches it already; use this node to change it, or to add it to another SVD model.",
            search_aliases=["cross-frame attention", "reference attention"],
            inputs=[
                io.Model.Input("model", tooltip="Any Stable Video Diffusion model."),
                io.Combo.Input("semantics", options=SEMANTICS, default="release",
                               tooltip="release: all frames attend to the source frame, as in the released code. paper: only the "
                                       "edited frames do. cross-frame: no trained weights; the model's own self-attention also "
                                       "sees the source frame. off: none."),
                io.Float.Input("strength", default=1.0, min=0.0, max=2.0, step=0.05, round=0.001,
                               tooltip="Strength of the matching attention. 1: as trained; lower: keeps less of the source; 0: "
                                       "off."),
                FramePainterType.Input("framepainter", optional=True,
                                       tooltip="Trained matching weights; needed for release and paper."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model with this attention; nothing else "
                                                                   "changes.")],
        )

    @classmethod
    def execute(cls, model, semantics: str, strength: float, framepainter=None) -> io.NodeOutput:
        check_choice("semantics", semantics, SEMANTICS)
        weights = None if framepainter is None else framepainter.matching
        return io.NodeOutput(attach_matching(model, weights, semantics, strength))


class CorrespondenceMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterCorrespondenceMap",
            display_name="Correspondence Map",
            description="Shows where in the source picture a point of the edit comes from, by the model's matching "
                        "attention (FramePainter, Fig. 8).",
            inputs=[
                io.Model.Input("model", tooltip="The model that made the edit, with its matching attention."),
                io.Conditioning.Input("positive", tooltip="The edit's positive conditioning."),
                io.Latent.Input("latent", tooltip="The finished edit, from KSampler: both frames."),
                io.Image.Input("picture", tooltip="The source picture, drawn under the maps."),
                io.Float.Input("x", default=0.5, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Position of the point in the edited picture, as a share of its width from the left."),
                io.Float.Input("y", default=0.5, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Position of the point in the edited picture, as a share of its height from the top."),
                io.Combo.Input("level", options=list(LEVELS), default="medium (1/16)",
                               tooltip="Size of the attention map, as a share of the picture's side. Finer is slower."),
                advanced(io.Float.Input("sigma", default=1.0, min=0.01, max=700.0, step=0.01, optional=True,
                                        tooltip="Noise level at which the attention is read.")),
                advanced(io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, optional=True,
                                      control_after_generate=False,
                                      tooltip="Seed of the noise that is added to the edit to read the attention.")),
            ],
            outputs=[
                io.Image.Output(display_name="heat_map",
                                tooltip="The source picture with the attention of the chosen point. Red cross: the chosen "
                                        "position; green cross: the best match."),
                io.Image.Output(display_name="flow", tooltip="Where every token of the edit comes from. Hue: the direction; "
                                                             "saturation: the distance; white: the same place."),
                io.Mask.Output(display_name="attention", tooltip="The heat map alone, 0 to 1."),
                io.Mask.Output(display_name="moved", tooltip="Tokens that moved, at their new and old places; for Edit Mask."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, picture, x: float, y: float, level: str, sigma: float = 1.0,
                seed: int = 0) -> io.NodeOutput:
        check_choice("level", level, LEVELS)
        samples = check_latent(latent)
        if len(samples) < 2:
            raise ValueError(f"the latent has {len(samples)} frame; it needs both frames of an edit. "
                             "Connect KSampler's LATENT itself.")
        seen = look(model, positive, samples, sigma, seed)
        if not seen:
            raise ValueError("the model has no matching attention. Connect the MODEL of Load "
                             "FramePainter, or put a Matching Attention node before it.")
        sizes = sorted({site.size for site in seen.values()}, reverse=True)
        size = sizes[min(LEVELS[level], len(sizes) - 1)]
        sites = [site for site in seen.values() if site.size == size]
        picture = picture[:1, ..., :3].cpu()
        whole = tuple(CELL * side for side in samples.shape[-2:])
        height, width = picture.shape[1:3]
        placed = placed_size(height, width, *whole)
        x, y = x * placed[1] / whole[1], y * placed[0] / whole[0]
        chosen = correspondence.token_at(x, y, *size)
        matches = correspondence.attention_matches(sites, chosen)
        best = int(matches.best[chosen])
        ground = on_canvas(picture.movedim(-1, 1), *canvas_in_picture(height, width, *whole)).movedim(1, -1)
        heat = correspondence.overlay_heat(ground, matches.heat, size)
        heat = correspondence.draw_cross(heat, x, y, RED)
        heat = correspondence.draw_cross(heat, (best % size[1] + 0.5) / size[1], (best // size[1] + 0.5) / size[0], GREEN)
        flow = correspondence.flow_to_image(correspondence.matches_to_flow(matches.best, *size))
        flow = flow.repeat_interleave(max(1, picture.shape[1] // size[0]), 0)
        flow = flow.repeat_interleave(max(1, picture.shape[2] // size[1]), 1)
        flow = flow[:round(len(flow) * placed[0] / whole[0]), :round(flow.shape[1] * placed[1] / whole[1])]
        attention = (matches.heat / matches.heat.max().clamp_min(1e-12)).reshape(1, *size)
        moved = moved_area(matches.best, *size)[None]
        if placed != whole:
            attention, moved = (_seen(part, whole, (height, width)) for part in (attention, moved))
        return io.NodeOutput(heat[:, :height, :width], flow[None], attention, moved)


def _seen(tokens: Tensor, canvas: tuple[int, int], picture: tuple[int, int]) -> Tensor:
    """A map of tokens (1, h, w) without what the canvas has beside the picture."""
    return off_canvas(interpolate(tokens[:, None], size=canvas, mode="nearest")[:, 0], *picture)


NODES = [MatchingAttention, CorrespondenceMap]
