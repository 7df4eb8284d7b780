"""FramePainter Conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.placement import CELL, canvas_size
from ..core.weights.trained import Trained
from ..host.conditioning import edit_conditioning
from ..host.models.network import trained
from ..host.report import warn
from .schema import check_choice, schema

SIZE_MODES = ["keep aspect", "exact"]


class FramePainterConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterConditioning",
            display_name="FramePainter Conditioning",
            description="Prepares a source picture for a two-frame edit in the way that FramePainter was trained. A batch of "
                        "pictures becomes a list of edits, which run one after another.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Input("vae", tooltip="SVD's VAE."),
                io.Image.Input("image", tooltip="One or more source pictures of any size."),
                io.Int.Input("width", default=1024, min=0, max=8192, step=8,
                             tooltip="Width in pixels. Set width and height to 0 for the size that the model was trained at, if "
                                     "its file states it."),
                io.Int.Input("height", default=576, min=0, max=8192, step=8, tooltip="Height in pixels; see width."),
                io.Combo.Input("size_mode", options=SIZE_MODES, default=SIZE_MODES[0],
                               tooltip="keep aspect: the picture's own aspect ratio, within 1 %, at about width x height pixels. "
                                       "exact: stretched to width x height, as in the authors' demo; both must be multiples of 8."),
                io.Int.Input("fps_id", default=6, min=0, max=1023,
                             tooltip="Frame rate number as the network sees it; released value 6."),
                io.Int.Input("motion_bucket_id", default=128, min=0, max=1023,
                             tooltip="Amount of motion, 0 to 255 in training; released value 128."),
                io.Float.Input("augmentation", default=0.02, min=0.0, max=10.0, step=0.005, round=0.001,
                               tooltip="Standard deviation of the noise added to the source's pixels (range -1 to 1) before the "
                                       "VAE. More lets the edit depart further from the source. Released value 0.02."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="Seed of the noise of 'augmentation'. The sampler has its own seed."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", is_output_list=True, tooltip="One for each picture."),
                io.Conditioning.Output(display_name="negative", is_output_list=True,
                                       tooltip="One for each picture: zero embedding and zero latent, with the same frame rate, "
                                               "motion and augmentation."),
                io.Latent.Output(display_name="latent", is_output_list=True,
                                 tooltip="Empty latent of two frames: frame 0 becomes the source again, frame 1 the edit."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, vae, image, width: int, height: int, size_mode: str, fps_id: int,
                motion_bucket_id: int, augmentation: float, seed: int) -> io.NodeOutput:
        check_choice("size_mode", size_mode, SIZE_MODES)
        known = trained(getattr(vae, "first_stage_model", None))
        if not width or not height:
            height, width = trained_size(width, height, known)
        size = target_size(image.shape[1], image.shape[2], width, height, size_mode)
        far = None if known is None else known.far_from(*size)
        if far is not None:
            warn(far)
        edits = [edit_conditioning(clip_vision, vae, image[i:i + 1, ..., :3], *size, fps_id, motion_bucket_id,
                                   augmentation, seed) for i in range(len(image))]
        return io.NodeOutput([e.positive for e in edits], [e.negative for e in edits], [e.latent for e in edits])


def trained_size(width: int, height: int, known: Trained | None) -> tuple[int, int]:
    """(height, width) in pixels of the training of the VAE's file.

    Raises:
        ValueError: only one side is 0, or the file does not say.
    """
    if width or height:
        raise ValueError(f"width is {width} and height is {height}. Set both to 0 for the size that the model was trained at, or "
                         "neither.")
    if known is None or known.size is None:
        raise ValueError("width and height are 0, but the file of 'vae' does not say at which size it was trained. Set them; the "
                         "published weights were trained at 1024 x 576.")
    return known.size


def target_size(picture_height: int, picture_width: int, width: int, height: int, mode: str) -> tuple[int, int]:
    """(height, width) in pixels to edit at.

    Raises:
        ValueError: exact sides that are no multiples of 8.
    """
    if mode == "keep aspect":
        return canvas_size(picture_height, picture_width, width * height)
    for name, side in (("width", width), ("height", height)):
        if side % CELL:
            nearest = max(1, round(side / CELL)) * CELL
            raise ValueError(f"{name} is {side}, not a multiple of {CELL}. Set it to {nearest}.")
    return height, width


NODES = [FramePainterConditioning]
