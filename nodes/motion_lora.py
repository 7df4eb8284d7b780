"""Train Motion LoRA, Load Motion LoRA, Save Motion LoRA."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..core.training.motion_lora.presets import ORDERS, PRECISIONS, PRESETS, PURPOSE, choose, expected
from ..host.outputs import new_file, output, stamp
from ..host.training import motion_lora
from ..host.training.motion_lora import MotionInputs
from ..host.weights import folders
from ..host.weights.motion_lora import load, save_published, with_lora, write
from .schema import advanced, check_choice, schema, written

RUNS = "framepainter_motion"
PRESET = "as the preset"
LoraModel = io.Custom("LORA_MODEL")
FORMS = ["ComfyUI", "published by the authors"]


class TrainMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterTrainMotionLora",
            display_name="Train Motion LoRA",
            description="Learns a clip's motion as a LoRA on the temporal attention of Stable Video Diffusion, for I2VEdit. A run "
                        "with the same inputs is not trained twice; a cancelled one resumes.",
            search_aliases=["i2vedit", "motion lora", "train lora"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Video Diffusion. It is not changed."),
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Input("vae", tooltip="SVD's VAE."),
                io.Image.Input("frames", tooltip="The clip: 2 frames or more, usually 14 for SVD and 25 for SVD-XT."),
                io.Combo.Input("preset", options=list(PRESETS), default="12 GB",
                               tooltip="Settings that go together. " + " ".join(
                                   f"{k}: {v}, {expected(k)}." for k, v in PURPOSE.items()) + " Estimates for 14 frames."),
                io.Int.Input("steps", default=250, min=1, max=100_000, tooltip="Optimiser steps. The released training makes "
                                                                              "250."),
                io.Float.Input("learning_rate", default=5e-4, min=1e-7, max=1.0, step=1e-5, round=1e-9,
                               tooltip="Learning rate of AdamW. The released training uses 0.0005."),
                io.Int.Input("rank", default=32, min=1, max=256, tooltip="Rank of the LoRA; 32 as released, 71 MB at full size."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, round=0.001,
                               tooltip="Strength of the LoRA on the returned model. The LoRA itself is not affected."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed for noise, dropout and initial weights."),
                advanced(io.Int.Input("width", default=0, min=0, max=4096, step=64, optional=True,
                                      tooltip="Training width in pixels; 0 takes the preset's.")),
                advanced(io.Int.Input("height", default=0, min=0, max=4096, step=64, optional=True,
                                      tooltip="Training height in pixels; 0 takes the preset's.")),
                advanced(io.Float.Input("dropout", default=0.1, min=0.0, max=0.9, step=0.05, round=0.001, optional=True,
                                        tooltip="Share of the LoRA's output that is dropped at random in training.")),
                advanced(io.Combo.Input("numbers", options=list(ORDERS), default="release", optional=True,
                                        tooltip="Order in which the network is told motion bucket and augmentation. release: "
                                                "swapped, as in the released training by mistake. corrected: as in sampling.")),
                advanced(io.Combo.Input("precision", options=[PRESET, *PRECISIONS], default=PRESET, optional=True,
                                        tooltip="Precision of the computation; the LoRA is kept in fp32. fp16 is for cards "
                                                "without bf16.")),
                advanced(io.Int.Input("save_every", default=50, min=1, max=100_000, optional=True,
                                      tooltip="Steps between saved states; a crash loses at most these.")),
                advanced(io.Int.Input("preview_every", default=0, min=0, max=100_000, optional=True,
                                      tooltip="Steps between previews, in which the clip is sampled again from its first frame; "
                                              "0: none. One preview takes as long as dozens of steps.")),
                io.Mask.Input("change_mask", optional=True,
                              tooltip="Where the edit will change the video, for instance what is erased: one mask for all "
                                      "frames, or one for each. The loss is ignored there, so that the LoRA does not learn it."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A copy with the LoRA on it."),
                LoraModel.Output(display_name="lora", tooltip="For Save Motion LoRA, or ComfyUI's Save LoRA Weights and Load LoRA "
                                                              "Model."),
                io.Image.Output(display_name="loss_curve", tooltip="Loss over the steps; single steps scatter with their noise."),
                io.Image.Output(display_name="previews", tooltip="The last preview: sampled above, the clip below. Black if there "
                                                                 "is none."),
                io.String.Output(display_name="report", tooltip="What was done, and where the file is."),
            ],
        )

    @classmethod
    def execute(cls, model, clip_vision, vae, frames, preset: str, steps: int, learning_rate: float, rank: int, strength: float,
                seed: int, width: int = 0, height: int = 0, dropout: float = 0.1, numbers: str = "release",
                precision: str = PRESET, save_every: int = 50, preview_every: int = 0, change_mask=None) -> io.NodeOutput:
        for name, value, options in (("preset", preset, PRESETS), ("numbers", numbers, ORDERS),
                                     ("precision", precision, (PRESET, *PRECISIONS))):
            check_choice(name, value, options)
        settings = choose(preset, steps=steps, learning_rate=learning_rate, rank=rank, seed=seed, width=width or None,
                          height=height or None, dropout=dropout, numbers=numbers, save_every=save_every,
                          precision=None if precision == PRESET else precision, preview_every=preview_every)
        made = motion_lora.train(MotionInputs(model, clip_vision, vae, frames, change_mask), settings, output() / RUNS, strength)
        return io.NodeOutput(*made)


class LoadMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterLoadMotionLora",
            display_name="Load Motion LoRA",
            description="Reads a motion LoRA: one of this pack, or a .pt list that the I2VEdit authors published.",
            search_aliases=["i2vedit"],
            inputs=[
                io.Model.Input("model", tooltip="The Stable Video Diffusion model it was trained on."),
                io.Combo.Input("lora_file", options=folder_paths.get_filename_list("loras"),
                               tooltip="From models/loras. Pickled code in a file is never run."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, round=0.001,
                               tooltip="1: as trained; 0: off."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy with the LoRA on it."),
                     LoraModel.Output(display_name="lora", tooltip="The LoRA itself, for Save Motion LoRA.")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_file: str, strength: float, **_):
        return [stamp(folders.find, lora_file, ("loras",)), strength]

    @classmethod
    def execute(cls, model, lora_file: str, strength: float) -> io.NodeOutput:
        lora = load(folders.find(lora_file, ("loras",)), model)
        return io.NodeOutput(with_lora(model, lora, strength), lora)


class SaveMotionLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSaveMotionLora",
            display_name="Save Motion LoRA",
            description="Writes a motion LoRA into the output folder, for ComfyUI's LoRA loaders or for the I2VEdit authors' code.",
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="A motion LoRA."),
                io.String.Input("filename_prefix", default="loras/motion", tooltip="Folder and beginning of the file name under "
                                                                                   "the output folder; a number is added."),
                io.Combo.Input("form", options=FORMS, default=FORMS[0],
                               tooltip="ComfyUI: safetensors for every LoRA loader. published by the authors: a .pt list without "
                                       "names, which needs `model`."),
                io.Model.Input("model", optional=True, tooltip="The model that the LoRA was trained on; needed for the authors' "
                                                               "form."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, lora, filename_prefix: str, form: str, model=None) -> io.NodeOutput:
        check_choice("form", form, FORMS)
        if form == FORMS[0]:
            path = new_file(filename_prefix, ".safetensors")
            write(path, lora)
        else:
            if model is None:
                raise ValueError("the authors' form lists the layers of a network without names. Connect the model that "
                                 "the LoRA was trained on to 'model'.")
            path = new_file(filename_prefix, "unet.pt")
            save_published(path, lora, model)
        return written(path)


NODES = [TrainMotionLora, LoadMotionLora, SaveMotionLora]
