"""Read Video, Plan Clips, Propagate Edit, Save Video (tagged)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from comfy_api.latest import InputImpl, io, ui

from ..core.images import as_pictures
from ..core.training.motion_lora.presets import MotionSettings
from ..core.video import clips, reading
from ..core.video.drift import picture as drift_picture
from ..core.video.drift import table as drift_table
from ..core.video.source import VideoError
from ..core.video.writing import QUALITY
from ..host import report
from ..host.attention.injection_run import Settings
from ..host.outputs import output, result_of
from ..host.video import propagate, saving
from .injection import PRESETS
from .schema import advanced, check_choice, schema, warned

ClipPlanType = io.Custom("CLIP_PLAN")
JOBS = "framepainter_video"
MATCHING = [name for name, betas in PRESETS.items() if betas is not None] + ["off"]


class ReadVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterReadVideo",
            display_name="Read Video",
            description="Reads frames and sound of a span of a video as an edit needs them: upright, at an even rate and of an "
                        "even size. Reads a damaged file up to the damage.",
            search_aliases=["video frames", "trim video", "variable frame rate"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Video.Input("video", tooltip="From Load Video."),
                io.Float.Input("fps", default=-1.0, min=-1.0, max=1000.0, step=0.5, round=0.001,
                               tooltip="Frames per second to take, by the times at which they are shown; -1 takes the video's "
                                       "mean rate, which gives every frame of a video with an even rate."),
                io.Float.Input("start", default=0.0, min=0.0, max=1e6, step=0.1, round=0.001,
                               tooltip="Start in seconds. Only the span is read into memory."),
                io.Float.Input("end", default=-1.0, min=-1.0, max=1e6, step=0.1, round=0.001,
                               tooltip="End in seconds; -1 is the video's end."),
                io.Boolean.Input("even_size", default=True,
                                 tooltip="Crops the last row or column of odd sizes, which Save Video cannot write as h264."),
                io.Int.Input("longer_side", default=0, min=0, max=16384, optional=True,
                             tooltip="Largest length of the longer side in pixels; larger frames are scaled down. 0 keeps the "
                                     "video's size."),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="For Plan Clips and Propagate Edit."),
                io.Float.Output(display_name="fps", tooltip="Frame rate of these frames, for Plan Clips or Create Video."),
                io.Audio.Output(display_name="audio", tooltip="The sound of the same span, for Create Video."),
                io.String.Output(display_name="report", tooltip="What was read, and what was done to the frames."),
            ],
        )

    @classmethod
    def execute(cls, video, fps: float, start: float, end: float, even_size: bool,
                longer_side: int = 0) -> io.NodeOutput:
        # Others have a source as well, which the host would first have to encode.
        source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
        name = Path(source).name if isinstance(source, str) else "the video"
        begin, duration = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()  # of the host's Trim Video
        try:
            if isinstance(source, str):
                ends = [begin + end] * (end != -1) + [begin + duration] * (duration > 0)
                found = reading.read(Path(source), fps, begin + start, min(ends, default=-1.0), even_size, longer_side,
                                     report.Steps(1).reach)
            else:  # made by nodes, at an even rate
                parts = video.get_components()
                images = warned("video", *as_pictures(parts.images, "video"))
                found = reading.take(images, float(parts.frame_rate), _sound(parts.audio), fps, start, end, even_size,
                                     longer_side)
        except VideoError as error:
            raise ValueError(f"'{name}' {error}. If it plays elsewhere, convert it; else copy it again.") from None
        except ValueError as error:
            raise ValueError(f"'{name}' {error}.") from None
        for note in found.notes:
            report.warn(f"{name}: {note}.")
        height, width = found.frames.shape[1:3]
        lines = [f"{len(found.frames)} frames at {found.fps:g} a second, {len(found.frames) / found.fps:.2f} s, {width} x {height}",
                 f"sound: {found.sound.wave.shape[1] / found.sound.rate:.2f} s" if found.sound else "no sound", *found.notes]
        return io.NodeOutput(found.frames, found.fps, _audio(found.sound), "\n".join(lines))


def _sound(audio: dict | None) -> reading.Sound | None:
    """The first of the host's batch of sounds."""
    return None if audio is None else reading.Sound(audio["waveform"][0], int(audio["sample_rate"]))


def _audio(sound: reading.Sound | None) -> dict | None:
    return None if sound is None else {"waveform": sound.wave[None], "sample_rate": sound.rate}


class PlanClips(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterPlanClips",
            display_name="Plan Clips",
            description="Splits a video into overlapping clips of the length that the model can take.",
            search_aliases=["chunk", "split video", "i2vedit"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("frames", tooltip="All frames of the video, as Get Video Components gives them."),
                io.Float.Input("fps", default=24.0, min=0.1, max=1000.0, step=0.01, round=0.001,
                               tooltip="Frames per second of the video."),
                io.Float.Input("sampled_fps", default=-1.0, min=-1.0, max=1000.0, step=0.5, round=0.001,
                               tooltip="Frames per second to keep; SVD was trained at about 7. -1 keeps all."),
                io.Int.Input("length", default=14, min=2, max=1000, tooltip="Frames per clip: 14 for SVD, 25 for SVD-XT."),
                io.Int.Input("overlap", default=1, min=0, max=100,
                             tooltip="Frames that a clip shares with the one before it. With 1, a clip begins with the last frame "
                                     "of the one before."),
                io.Combo.Input("remainder", options=list(clips.REMAINDERS), default="equal",
                               tooltip="What happens if the last clip is not full. equal: all clips get nearly the same length. "
                                       "short: it stays short, as released. join: if it is less than half full, it is added to "
                                       "the one before."),
                io.Float.Input("start", default=0.0, min=0.0, max=1e6, step=0.1, round=0.001, tooltip="Seconds."),
                io.Float.Input("end", default=-1.0, min=-1.0, max=1e6, step=0.1, round=0.001,
                               tooltip="End in seconds; -1 is the video's end."),
                io.Audio.Input("audio", optional=True, tooltip="The video's sound. It is returned cut to the frames that are "
                                                               "used."),
            ],
            outputs=[
                ClipPlanType.Output(display_name="plan", tooltip="For Propagate Edit."),
                io.Image.Output(display_name="first_frame", tooltip="The first frame that is used: edit this one."),
                io.Float.Output(display_name="fps", tooltip="Frames per second of the result, for Create Video."),
                io.String.Output(display_name="report", tooltip="The frames and clips, in words."),
                io.Audio.Output(display_name="audio", tooltip="The sound of the frames that are used, for Create Video."),
            ],
        )

    @classmethod
    def execute(cls, frames, fps: float, sampled_fps: float, length: int, overlap: int, remainder: str, start: float,
                end: float, audio: dict | None = None) -> io.NodeOutput:
        check_choice("remainder", remainder, clips.REMAINDERS)
        try:
            plan = clips.plan(len(frames), fps, length, overlap, start, end, sampled_fps, remainder)
        except ValueError as error:
            raise ValueError(f"{error}.") from None
        if len(plan.frames) < 2:
            raise ValueError(f"one frame is used; there is no other to carry an edit to. 'frames' has {len(frames)} at "
                             f"{fps:g} a second; choose start and end further apart, a higher sampled_fps or another video.")
        first, text = plan.frames[0], plan.describe()
        height, width = frames.shape[1:3]
        if height % 2 or width % 2:
            odd = (f"{width} x {height} pixels: Save Video cannot write odd sizes as h264. Read Video in place of Get Video "
                   "Components crops them, as does an Image Crop before Create Video; Save Video (tagged) writes the last "
                   "row or column twice")
            report.warn(f"{odd}.")
            text += f"\n{odd}"
        if audio is not None:
            begin = first / fps
            audio = _audio(reading.trimmed(_sound(audio), begin, begin + len(plan.frames) / plan.fps))
        return io.NodeOutput(plan, frames[first:first + 1], plan.fps, text, audio)


class PropagateEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterPropagateEdit",
            display_name="Propagate Edit",
            description="Carries an edited first frame through a video of any length (I2VEdit). Every stage is kept on the disk: "
                        "cancel and queue again to resume, or queue another edit of the same video, which reuses training and "
                        "inversion.",
            search_aliases=["i2vedit", "video edit", "edit video", "video editing", "first frame"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="Stable Video Diffusion. It is not changed."),
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Input("vae", tooltip="SVD's VAE."),
                io.Image.Input("frames", tooltip="All frames of the video."),
                io.Image.Input("edited", tooltip="The first frame that the plan uses, edited by any tool, at the video's aspect "
                                                 "ratio."),
                ClipPlanType.Input("plan", tooltip="From Plan Clips, for the same frames."),
                io.Int.Input("width", default=1024, min=32, max=4096, step=8, tooltip="Width in pixels at which the model works."),
                io.Int.Input("height", default=576, min=32, max=4096, step=8, tooltip="Height in pixels at which the model works."),
                io.Combo.Input("lora", options=list(propagate.LORAS), default=propagate.LORAS[0],
                               tooltip="Motion LoRA: one that is trained on the first clip, one for each clip, or none. One for "
                                       "each clip follows changing motion better and takes that many times longer. as published: "
                                       "one for each clip, but what later clips see of the first comes from the first clip's own "
                                       "LoRA."),
                io.Int.Input("lora_steps", default=250, min=1, max=100_000, tooltip="Training steps; 250 as released."),
                io.Combo.Input("matching", options=MATCHING, default=MATCHING[0],
                               tooltip="How the source's attention is followed; the names are Match Attention's presets. off: the "
                                       "edit follows the source through the inverted noise alone."),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Number of steps of the inversion, and of the "
                                                                           "sampling."),
                io.Float.Input("guidance", default=2.0, min=0.0, max=20.0, step=0.1, round=0.01,
                               tooltip="Guidance scale (cfg) at a clip's last frame; it rises from 1 at the first."),
                io.Combo.Input("carry", options=list(propagate.CARRIES), default=propagate.CARRIES[0],
                               tooltip="How a clip begins: with the last latent of the clip before, as released, or with that "
                                       "clip's last frame encoded again."),
                io.Float.Input("colour_match", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Against drift: how far a later clip's colours are pulled to those of its source, with the "
                                       "first edit's change of colour applied. 0: as released."),
                io.Float.Input("anchor", default=0.0, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Against drift: share of the first edited frame in what later clips are told through CLIP. "
                                       "0: as released."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed for all noise in this job."),
                io.Boolean.Input("skip_interval", default=True, optional=True,
                                 tooltip="Against drift: later clips see the first clip's keys and values in their temporal "
                                         "attention. The first clip runs again beside each of them, which doubles the time."),
                advanced(io.Float.Input("threshold", default=0.35, min=0.0, max=1.0, step=0.05, round=0.001, optional=True,
                                        tooltip="Threshold of the attention difference: above it, a place follows the edit alone. "
                                                "Default as released; higher keeps more of the source.")),
                advanced(io.Int.Input("motion_bucket_id", default=127, min=0, max=1023, optional=True,
                                      tooltip="Amount of motion as the network sees it; 127 as released.")),
                advanced(io.Int.Input("rank", default=32, min=1, max=256, optional=True, tooltip="Rank of the motion LoRA.")),
                advanced(io.Float.Input("learning_rate", default=5e-4, min=1e-7, max=1.0, step=1e-5, round=1e-9, optional=True,
                                        tooltip="Learning rate of the LoRA training.")),
                advanced(io.Float.Input("lora_strength", default=1.0, min=0.0, max=10.0, step=0.05, round=0.001, optional=True,
                                        tooltip="Strength of the motion LoRA when the edit is sampled.")),
                advanced(io.Combo.Input("precision", options=["bf16", "fp16", "fp32"], default="bf16", optional=True,
                                        tooltip="Precision of the training.")),
                io.Mask.Input("change_mask", optional=True,
                              tooltip="Where the edit changes the video, for keep_untouched and lora_outside_mask: one mask for "
                                      "all frames, or one for each frame of the video or of the plan."),
                io.Boolean.Input("keep_untouched", default=False, optional=True,
                                 tooltip="Keeps the video's own pixels outside change_mask, bit for bit and at the video's own "
                                         "size. Without a mask: where the edit does not differ visibly from the video."),
                advanced(io.Boolean.Input("lora_outside_mask", default=False, optional=True,
                                          tooltip="Train the motion LoRA only on what lies outside change_mask. For things that "
                                                  "are erased; leave it off where the motion inside the mask should stay.")),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The edited video at its own size; for Create Video."),
                io.Image.Output(display_name="drift", tooltip="How colour, sharpness and similarity change from clip to clip."),
                io.String.Output(display_name="report", tooltip="The stages, which of them came from the disk, and the measured "
                                                                "drift."),
            ],
        )

    @classmethod
    def execute(cls, model, clip_vision, vae, frames, edited, plan, width: int, height: int, lora: str, lora_steps: int,
                matching: str, steps: int, guidance: float, carry: str, colour_match: float, anchor: float, seed: int,
                skip_interval: bool = True, threshold: float = 0.35,
                motion_bucket_id: int = 127, rank: int = 32, learning_rate: float = 5e-4, lora_strength: float = 1.0,
                precision: str = "bf16", change_mask=None, keep_untouched: bool = False,
                lora_outside_mask: bool = False) -> io.NodeOutput:
        for name, value, options in (("lora", lora, propagate.LORAS), ("matching", matching, MATCHING),
                                     ("carry", carry, propagate.CARRIES), ("precision", precision, ("bf16", "fp16", "fp32"))):
            check_choice(name, value, options)
        match = Settings(thresholds=(threshold, threshold))
        if matching != "off":
            match = replace(match, betas=PRESETS[matching])
        settings = propagate.Settings(
            height, width, steps=steps, guidance=guidance, lora=lora, lora_strength=lora_strength, match=match,
            matching=matching != "off", carry=carry, colour_match=colour_match, anchor=anchor, skip_interval=skip_interval,
            motion_bucket=motion_bucket_id, fps=plan.fps, seed=seed,
            motion=MotionSettings(steps=lora_steps, rank=rank, learning_rate=learning_rate, precision=precision, seed=seed))
        folder = output() / JOBS
        if change_mask is not None and not (keep_untouched or lora_outside_mask):
            report.warn("'change_mask' has no effect while keep_untouched and lora_outside_mask are off.")
        job = propagate.Job(propagate.Models(model, clip_vision, vae), frames, edited, plan, settings, folder, report.log.info,
                            propagate.Change(change_mask, keep_untouched, lora_outside_mask))
        result = job.run()
        text = "\n".join([plan.describe(), *result.stages, "", drift_table(result.drift)])
        return io.NodeOutput(result.frames, drift_picture(result.drift), text)


class SaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSaveVideo",
            display_name="Save Video (tagged)",
            description="Writes an MP4 that every player shows in the colours of its frames: it is encoded and tagged as BT.709.",
            search_aliases=["export video", "colour shift", "color shift", "bt709", "mp4"],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="From Create Video. A video that comes straight from Load Video is copied "
                                                "unchanged."),
                io.String.Input("filename_prefix", default="video/ComfyUI",
                                tooltip="Folder and beginning of the file name under the output folder; a number is added."),
                advanced(io.Int.Input("crf", default=QUALITY, min=1, max=51, optional=True,
                                      tooltip="Constant rate factor (CRF) of the H.264 encoder. Lower keeps more detail and makes "
                                              "larger files; 23 is the encoder's own default, at which even colours are off by up "
                                              "to 3 of 255.")),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, video, filename_prefix: str, crf: int = QUALITY) -> io.NodeOutput:
        path = saving.save(video, filename_prefix, crf, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        return io.NodeOutput(ui=ui.PreviewVideo([ui.SavedResult(*result_of(path), io.FolderType.output)]))


NODES = [ReadVideo, PlanClips, PropagateEdit, SaveVideo]
