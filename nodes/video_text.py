"""Video Text Model, Tune on Video, Save and Load Tuned Video: a text-to-image model that sees a whole video (Video-P2P)."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.inversion.trajectory import TrajectoryError
from ..core.training.one_shot.objective import WHAT
from ..core.training.one_shot.presets import PRECISIONS, PRESETS, choose
from ..host.attention.inflated import Settings, check_model, inflate
from ..host.conditioning import check_latent
from ..host.inversion.ddim import text_of
from ..host.models.network import check_embedding
from ..host.outputs import new_file, output, saved_names, saved_path, stamp
from ..host.training.one_shot import OneShotInputs
from ..host.training.tune_on_video import tune
from ..host.weights import tuned_video
from .schema import TunedVideoType, advanced, check_choice, schema, written

RUNS, FOLDER = "framepainter_tuning", "tuned_videos"  # under output; the second also under input
PRESET = "as the preset"
FULL, LOW_RANK = "full", "low rank"


def layers_inputs() -> list:
    """Inputs on how the frames of a video are worked on."""
    return [
        advanced(io.Int.Input("window", default=0, min=0, max=10_000, optional=True,
                              tooltip="Number of nearest frames that temporal attention sees at once; 0: all. For clips much "
                                      "longer than the one that was tuned on, use that clip's number of frames.")),
        advanced(io.Boolean.Input("streamed", default=False, optional=True,
                                  tooltip="Keep features in main memory and work on a few frames at a time, for clips that do not "
                                          "fit on the card. Gives the same result, but takes longer.")),
    ]


class VideoTextModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterVideoTextModel",
            display_name="Video Text Model",
            description="Lets the frames of a video see each other in a Stable Diffusion 1.x model, for editing videos by words "
                        "(Video-P2P's text-to-set model). With a tuned video it also knows that video.",
            search_aliases=["video-p2p", "tune-a-video", "frame attention", "text-to-set"],
            inputs=[
                io.Model.Input("model", tooltip="Any Stable Diffusion 1.x model with any LoRAs. It is not changed."),
                TunedVideoType.Input("tuned", optional=True, tooltip="From Tune on Video or Load Tuned Video. Without it the model "
                                                                     "has no temporal attention."),
                *layers_inputs(),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model for Invert DDIM, Prompt Attention and the "
                                                                   "sampler. Its latents are the frames of one video.")],
        )

    @classmethod
    def execute(cls, model, tuned=None, window: int = 0, streamed: bool = False) -> io.NodeOutput:
        layers = Settings(window=window, streamed=streamed)
        out = inflate(model, None, layers) if tuned is None else tuned_video.on_model(model, tuned, layers)
        return io.NodeOutput(out)


class TuneOnVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterTuneOnVideo",
            display_name="Tune on Video",
            description="Tunes a Stable Diffusion 1.x model on one video, so that its frames stay consistent when it is edited "
                        "(Video-P2P, stage 1). A run with the same inputs is not trained twice; a cancelled one resumes.",
            search_aliases=["video-p2p", "tune-a-video", "one-shot tuning", "train"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Diffusion 1.x. It is not changed. LoRAs on it become part of the result."),
                io.Conditioning.Input("positive", tooltip="What the video shows: source of Prompt Edit, or CLIP Text Encode."),
                io.Latent.Input("latent", tooltip="The video's latents, one for each frame: VAE Encode of all frames. The "
                                                  "published runs have 8 frames of 512 x 512."),
                io.Combo.Input("preset", options=list(PRESETS), default="default",
                               tooltip="Settings that go together. default: trains all layers that should learn, in bf16. as "
                                       "released: the published training with its mistakes, in fp16. small network: fp32, for the "
                                       "model that comes with the pack."),
                io.Int.Input("steps", default=500, min=1, max=100_000,
                             tooltip="Optimiser steps. 300 to 500 as published; more follow the video more closely and leave less "
                                     "room for the edit."),
                io.Float.Input("learning_rate", default=3e-5, min=1e-8, max=1.0, step=1e-6, round=1e-9,
                               tooltip="Learning rate of AdamW. 0.00003 as published; above 0.0001 the model forgets what it "
                                       "knew."),
                io.Int.Input("seed", default=33, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed for noise, timesteps and new layers."),
                advanced(io.Combo.Input("what_trains", options=[PRESET, *WHAT], default=PRESET, optional=True,
                                        tooltip="all_trainable: query projections and temporal attention everywhere. as_released: "
                                                "not on the way down, as the published code drops these gradients by mistake.")),
                advanced(io.Combo.Input("precision", options=[PRESET, *PRECISIONS], default=PRESET, optional=True,
                                        tooltip="Precision of the computation; trained weights are kept in fp32. fp16 is for "
                                                "cards without bf16.")),
                advanced(io.Int.Input("save_every", default=100, min=1, max=100_000, optional=True,
                                      tooltip="Steps between saved states; a crash loses at most these.")),
                *layers_inputs(),
                io.Vae.Input("vae", optional=True, tooltip="For previews only: the checkpoint's VAE."),
                advanced(io.Int.Input("preview_every", default=0, min=0, max=100_000, optional=True,
                                      tooltip="Steps between previews, in which noise is added to the video and it is sampled "
                                              "again; 0: none. One preview takes as long as a dozen steps.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the model that sees the video, as from Video Text Model."),
                TunedVideoType.Output(display_name="tuned", tooltip="What was learned, for Save Tuned Video and Video Text Model."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss over the steps; single steps scatter with their noise."),
                io.String.Output(display_name="report", tooltip="What was done, and where the file is."),
                io.Image.Output(display_name="previews", tooltip="The last preview: sampled above, the video below. Black if "
                                                                 "there is none."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, preset: str, steps: int, learning_rate: float, seed: int, what_trains: str = PRESET,
                precision: str = PRESET, save_every: int = 100, window: int = 0, streamed: bool = False, vae=None,
                preview_every: int = 0) -> io.NodeOutput:
        for name, value, options in (("preset", preset, PRESETS), ("what_trains", what_trains, (PRESET, *WHAT)),
                                     ("precision", precision, (PRESET, *PRECISIONS))):
            check_choice(name, value, options)
        given = {"what_trains": what_trains, "precision": precision}
        settings = choose(preset, steps=steps, learning_rate=learning_rate, seed=seed, save_every=save_every,
                          preview_every=preview_every,
                          **{name: None if value == PRESET else value for name, value in given.items()})
        check_model(model)
        frames = check_latent(latent, "Stable Diffusion 1.x", "Connect VAE Encode with the checkpoint's VAE.")
        if len(frames) < 2:
            raise TrajectoryError("'latent' has one frame; a video needs at least two. Connect VAE Encode of all frames.")
        if preview_every and vae is None:
            raise ValueError(f"'preview_every' is {preview_every}, but no 'vae' is connected to decode previews. Connect the "
                             "checkpoint's VAE, or set it to 0.")
        inputs = OneShotInputs(model, text_of(positive, "positive"), frames, vae)
        check_embedding(model, positive, "positive")
        made = tune(inputs, settings, output() / RUNS,
                    Settings(window=window, streamed=streamed))
        return io.NodeOutput(made.model, made.trained, made.curve, made.report, made.previews)


class SaveTunedVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSaveTunedVideo",
            display_name="Save Tuned Video",
            description="Writes what Tune on Video learned into one safetensors file, to edit the video again later.",
            is_output_node=True,
            inputs=[
                TunedVideoType.Input("tuned", tooltip="From Tune on Video."),
                io.String.Input("filename_prefix", default=f"{FOLDER}/video",
                                tooltip="Folder and beginning of the file name under the output folder; a number is added. Load "
                                        "Tuned Video lists the folder tuned_videos."),
                io.Combo.Input("form", options=[FULL, LOW_RANK], default=FULL,
                               tooltip="full: every weight, 149 MB at the size of SD 1.5 in fp16. low rank: a smaller "
                                       "approximation, whose error is shown; needs 'model'."),
                io.Int.Input("rank", default=64, min=1, max=1024, tooltip="Rank of the low-rank form. Higher is larger and more "
                                                                          "accurate; 64 takes about 19 MB at the size of SD 1.5 "
                                                                          "in fp16."),
                io.Combo.Input("precision", options=list(tuned_video.DTYPES), default="fp16",
                               tooltip="fp32 keeps every bit and is twice as large."),
                io.Model.Input("model", optional=True, tooltip="The checkpoint that was tuned; needed for the low-rank form."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, tuned, filename_prefix: str, form: str, rank: int, precision: str, model=None) -> io.NodeOutput:
        check_choice("form", form, (FULL, LOW_RANK))
        check_choice("precision", precision, tuned_video.DTYPES)
        path = new_file(filename_prefix, ".safetensors")
        path, error = tuned_video.save(path, tuned, precision, rank if form == LOW_RANK else 0, model)
        lost = f"; {error:.1%} of what tuning changed is lost" if form == LOW_RANK else ""
        return written(path, note=lost)


class LoadTunedVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterLoadTunedVideo",
            display_name="Load Tuned Video",
            description="Reads a tuned video that Save Tuned Video wrote, in either form, and puts it on a model.",
            inputs=[
                io.Model.Input("model", tooltip="The Stable Diffusion 1.x checkpoint that was tuned."),
                io.Combo.Input("file", options=saved_names(FOLDER), tooltip="From the folder tuned_videos under output or input."),
                *layers_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy of the model that sees the video, as from Video Text Model."),
                TunedVideoType.Output(display_name="tuned", tooltip="The weights themselves."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, window: int = 0, streamed: bool = False):
        return [file, stamp(saved_path, file, FOLDER), window, streamed]

    @classmethod
    def execute(cls, model, file: str, window: int = 0, streamed: bool = False) -> io.NodeOutput:
        tuned = tuned_video.load(saved_path(file, FOLDER), model)
        return io.NodeOutput(tuned_video.on_model(model, tuned, Settings(window=window, streamed=streamed)), tuned)


NODES = [VideoTextModel, TuneOnVideo, SaveTunedVideo, LoadTunedVideo]
