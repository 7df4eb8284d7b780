"""Edited Frame Conditioning, Match Attention, Record Attention, Difference Mask."""

from __future__ import annotations

import uuid
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..core.attention import difference
from ..core.attention.injection import Masks
from ..core.inversion import condition
from ..host.attention import injection as host
from ..host.attention.injection_run import BRANCHES, Settings
from ..host.attention.record import record_attention
from ..host.conditioning import ClipStart, MicroConds, check_latent, edited_conditioning
from .inversion import check_size
from .schema import AttentionRecordType, TrajectoryType, advanced, check_choice, schema

CUSTOM = "custom"
# Section 5.1: shares of the steps at which temporal attention's second and third stage begin.
PRESETS = {"local edit": (0.5, 0.8), "global style": (0.8, 0.9), "large shape change": (0.4, 0.5), CUSTOM: None}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PLACES = ["RAM", "disk"]
LOOKS = 4  # noise levels at which a finished edit is looked at if its run left no read-out
SAME_SHAPE = 0.05  # relative difference of aspect ratios that a mask may have


class EditedFrameConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterEditedConditioning",
            display_name="Edited Frame Conditioning",
            description="Conditioning from the edited first frame, for sampling an edited clip as in I2VEdit.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Input("vae", tooltip="SVD's VAE."),
                io.Image.Input("image", tooltip="The edited first frame, at the clip's size."),
                io.Latent.Input("latent", tooltip="The clip's latent, to check the size."),
                io.Int.Input("fps", default=7, min=1, max=1024, optional=True,
                             tooltip="Frame rate of the clip; the network gets this number minus one, as released."),
                io.Int.Input("motion_bucket_id", default=condition.MOTION_BUCKET, min=0, max=1023, optional=True,
                             tooltip="Amount of motion as the network sees it; released value 127."),
                io.Float.Input("augmentation", default=condition.AUGMENTATION, min=0.0, max=10.0, step=0.005, round=0.001,
                               optional=True,
                               tooltip="Standard deviation of the noise added to the condition's latent, the same for all frames; "
                                       "the network is also told this number. Released value 0.02."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True,
                             tooltip="Seed of the noise of 'augmentation'."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="Zero embedding and zero latent, with the same frame "
                                                                        "rate, motion and augmentation."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, vae, image, latent, fps: int = 7, motion_bucket_id: int = condition.MOTION_BUCKET,
                augmentation: float = condition.AUGMENTATION, seed: int = 0) -> io.NodeOutput:
        samples = check_latent(latent)
        height, width = check_size("image", image)
        h, w = samples.shape[-2:]
        if (height, width) != (8 * h, 8 * w):
            raise ValueError(f"'image' is {width} x {height} pixels, the clip {8 * w} x {8 * h}. Fit the edited frame "
                             "in the same way as the clip.")
        noise = condition.latent_noise(h, w, torch.Generator("cpu").manual_seed(seed))
        numbers = MicroConds(fps - 1, motion_bucket_id, augmentation)
        return io.NodeOutput(*edited_conditioning(clip_vision, vae, ClipStart(image[:1, ..., :3]), numbers, noise))


class MatchAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterMatchAttention",
            display_name="Match Attention",
            description="Lets an edited clip follow a source clip's attention (I2VEdit's attention injection): its structure "
                        "where the two agree, its motion in the first steps. The source runs beside the edit; nothing is stored "
                        "on disk.",
            search_aliases=["I2VEdit", "attention injection", "video edit", "first frame"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the clip was inverted with. LoRAs on it act on the edit only."),
                TrajectoryType.Input("trajectory", tooltip="From Invert EDM or Load Trajectory."),
                io.Combo.Input("preset", options=list(PRESETS), default="local edit",
                               tooltip="How long the temporal attention is the source's: all layers until the first share of the "
                                       "steps, coarse layers until the second. local edit: 0.5 and 0.8. global style: 0.8 and "
                                       "0.9. large shape change: 0.4 and 0.5. custom: beta_1 and beta_2."),
                io.Float.Input("threshold", default=0.35, min=0.0, max=1.01, step=0.01, round=0.0001,
                               tooltip="Threshold at the first frame: where spatial attention differs by at least this much, the "
                                       "edit keeps its own. More keeps more of the source."),
                io.Float.Input("threshold_last", default=0.35, min=0.0, max=1.01, step=0.01, round=0.0001,
                               tooltip="Threshold at the last frame; frames between are interpolated linearly."),
                io.Float.Input("beta_1", default=0.5, min=0.0, max=1.0, step=0.05, round=0.0001, optional=True,
                               tooltip="With custom: share of the steps in which all temporal attention is the source's."),
                io.Float.Input("beta_2", default=0.8, min=0.0, max=1.0, step=0.05, round=0.0001, optional=True,
                               tooltip="With custom: share of the steps after which all temporal attention is the edit's own. "
                                       "Between beta_1 and this, only the coarse layers use the source's."),
                io.Mask.Input("change_mask", optional=True,
                              tooltip="White areas do not follow the source's structure. One mask, or one for each frame."),
                io.Mask.Input("stay_mask", optional=True,
                              tooltip="White areas stay as in the source. One mask, or one for each frame."),
                io.Boolean.Input("hold_stay", default=True, optional=True,
                                 tooltip="Also hold the latents in the areas of stay_mask to the source's, so that these areas "
                                         "come out unchanged. Off: only their attention is the source's."),
                AttentionRecordType.Input("record", optional=True,
                                          tooltip="From Record Attention: read this record instead of running the source again."),
                advanced(io.Boolean.Input("spatial", default=True, optional=True, tooltip="Inject spatial attention.")),
                advanced(io.Boolean.Input("temporal", default=True, optional=True, tooltip="Inject temporal attention.")),
                advanced(io.Int.Input("coarse_scale", default=4, min=1, max=64, optional=True,
                                      tooltip="Between beta_1 and beta_2, the layers whose size is at most the latent's divided "
                                              "by this use the source's temporal attention; released value 4.")),
                advanced(io.Combo.Input("branches", options=list(BRANCHES), default=BRANCHES[0], optional=True,
                                        tooltip="together: the source runs in one batch with the edit. one after another: before "
                                                "it, which takes less memory. auto: together if memory allows. The results are "
                                                "equal up to rounding.")),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model that follows the source; for the "
                                                                   "sampler.")],
        )

    @classmethod
    def execute(cls, model, trajectory, preset: str, threshold: float, threshold_last: float, beta_1: float = 0.5,
                beta_2: float = 0.8, change_mask=None, stay_mask=None, hold_stay: bool = True, record=None,
                spatial: bool = True, temporal: bool = True, coarse_scale: int = 4,
                branches: str = BRANCHES[0]) -> io.NodeOutput:
        check_choice("preset", preset, PRESETS)
        check_choice("branches", branches, BRANCHES)
        betas = PRESETS[preset] or (beta_1, beta_2)
        if betas[0] > betas[1]:
            raise ValueError(f"beta_1 {betas[0]} is after beta_2 {betas[1]}. Lower beta_1 or raise beta_2.")
        settings = Settings((threshold, threshold_last), betas, coarse_scale, spatial, temporal, branches)
        masks = Masks(clip_mask("change_mask", change_mask, trajectory.size), clip_mask("stay_mask", stay_mask, trajectory.size))
        return io.NodeOutput(host.inject_attention(model, trajectory, settings, record, masks, hold_stay))


def clip_mask(name: str, mask, size: tuple[int, int]):
    """A mask that fits a clip of (h, w) latent pixels; None for an empty one (Load Image gives a small black mask).

    Raises:
        ValueError: another aspect ratio.
    """
    if mask is None or float(mask.max()) <= 0.0:
        return None
    mask = mask.reshape(-1, *mask.shape[-2:]).float().clamp(0.0, 1.0)
    ratios = mask.shape[-1] / mask.shape[-2], size[1] / size[0]
    if abs(ratios[0] / ratios[1] - 1.0) > SAME_SHAPE:
        raise ValueError(f"'{name}' is {mask.shape[-1]} x {mask.shape[-2]} pixels, the clip {size[1] * 8} x "
                         f"{size[0] * 8}. Fit the mask in the same way as the clip.")
    return mask.cpu()


class RecordAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterRecordAttention",
            display_name="Record Attention",
            description="Records a source clip's attention for many edits. Useful only on slow cards with much memory, because "
                        "Match Attention can run the source again by itself.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the clip was inverted with, without the edit's LoRAs."),
                TrajectoryType.Input("trajectory", tooltip="From Invert EDM or Load Trajectory."),
                io.Combo.Input("place", options=PLACES, default=PLACES[0],
                               tooltip="Main memory, or files in ComfyUI's temp folder, which are deleted when the record is no "
                                       "longer in use."),
                io.Combo.Input("precision", options=list(DTYPES), default="fp16",
                               tooltip="fp32 gives the same result as running the source again. 16 bit takes half the space, but "
                                       "single values at the threshold may be decided differently."),
                io.Float.Input("budget_gb", default=8.0, min=0.0, max=10000.0, step=0.5, round=0.0001,
                               tooltip="Memory limit in GB. The source runs again for steps that do not fit. 14 frames of 1024 x "
                                       "576 and 25 steps take 40 GB in 16 bit."),
            ],
            outputs=[AttentionRecordType.Output(display_name="record", tooltip="For Match Attention.")],
        )

    @classmethod
    def execute(cls, model, trajectory, place: str, precision: str, budget_gb: float) -> io.NodeOutput:
        check_choice("place", place, PLACES)
        check_choice("precision", precision, DTYPES)
        folder = None
        if place == "disk":
            folder = Path(folder_paths.get_temp_directory(), f"framepainter_attention_{uuid.uuid4().hex[:12]}")
        return io.NodeOutput(record_attention(model, trajectory, folder, DTYPES[precision], int(budget_gb * 1e9)))


class DifferenceMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterDifferenceMask",
            display_name="Difference Mask",
            description="Where an edited clip's attention differs from the source's, averaged over the steps and layers of the "
                        "run (I2VEdit, Fig. 15). It shows what the edit has changed.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler ran, with Match Attention."),
                io.Conditioning.Input("positive", tooltip="The edit's positive conditioning."),
                io.Latent.Input("latent", tooltip="The finished edit, from the sampler."),
                io.Combo.Input("layers", options=list(difference.LAYERS), default="all",
                               tooltip="Layers to average over. third on the way down: the one that the paper shows."),
                io.Combo.Input("values", options=list(difference.VALUES), default="difference",
                               tooltip="difference: half the sum of absolute differences, 0 to 1. weight: the share of the "
                                       "edit's own attention, which is 1 from the threshold on."),
                io.Boolean.Input("normalise", default=False, optional=True,
                                 tooltip="Stretch the mask so that its largest value is 1. The picture is always stretched."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="One mask for each frame, 0 to 1, at the clip's size."),
                io.Image.Output(display_name="picture", tooltip="The same in colour, from black through red and yellow to white."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, layers: str, values: str, normalise: bool = False) -> io.NodeOutput:
        check_choice("layers", layers, difference.LAYERS)
        check_choice("values", values, difference.VALUES)
        found = host.read_out_of(model)
        if found is None:
            raise ValueError("'model' has no Match Attention. Connect the MODEL that goes into the sampler.")
        read_out, plan = found
        if not plan.settings.spatial:
            raise ValueError("no spatial attention is injected, so there is no difference. Turn 'spatial' on in "
                             "Match Attention.")
        samples = check_latent(latent)
        if not read_out.sites:  # the sampler's result came from the host's cache, or another process
            steps = plan.trajectory.steps
            host.measure(model, positive, samples, sorted({round(i * (steps - 1) / (LOOKS - 1)) for i in range(LOOKS)}))
        height, width = (8 * side for side in samples.shape[-2:])
        mask = difference.average(list(read_out.sites.values()), layers, values, height, width)
        if mask is None:
            raise ValueError(f"this network has no layers '{layers}'. Choose another entry of 'layers'.")
        stretched = mask / mask.max().clamp_min(1e-6)
        return io.NodeOutput(stretched if normalise else mask, difference.colours(stretched))


NODES = [EditedFrameConditioning, MatchAttention, RecordAttention, DifferenceMask]
