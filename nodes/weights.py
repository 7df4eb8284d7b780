"""Load FramePainter, Load Small Text-to-Image Model, Save FramePainter Checkpoint."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..host.outputs import new_file, stamp, workflow_texts
from ..host.weights import folders, loading, saving, text_to_image
from .schema import FramePainterType, advanced, check_choice, schema, written

INSIDE = "(in the model file)"
FORMS = ["single file", "authors' two files"]
DTYPES = {"default": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LoadFramePainter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterLoad",
            display_name="Load FramePainter",
            description="Loads a FramePainter model: the authors' two files, or one file saved by this pack. For videos it also "
                        "loads a plain Stable Video Diffusion checkpoint. Nothing is downloaded.",
            search_aliases=["framepainter", "sketch edit", "svd edit", "load stable video diffusion"],
            inputs=[
                io.Combo.Input("model_file", options=folders.names(folders.UNETS),
                               tooltip="The authors' unet_diffusion_pytorch_model.safetensors, or a FramePainter checkpoint; for "
                                       "I2VEdit's nodes a Stable Video Diffusion checkpoint. From models/framepainter, "
                                       "diffusion_models or checkpoints."),
                io.Combo.Input("encoder_file", options=[INSIDE, *folders.names(folders.ENCODERS)],
                               tooltip="The authors' encoder_diffusion_pytorch_model.safetensors, from "
                                       "models/framepainter, controlnet or diffusion_models."),
                io.Combo.Input("clip_and_vae", options=[INSIDE, *folders.names(folders.PICTURES)],
                               tooltip="Stable Video Diffusion checkpoint to take the CLIP image encoder and the VAE "
                                       "from; its UNet is not read."),
                advanced(io.Combo.Input("weight_dtype", options=list(DTYPES), default="default", optional=True,
                                        tooltip="Precision of the weights in memory. default: chosen by ComfyUI for your card.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The UNet with its matching attention, as released; a Stable Video "
                                                              "Diffusion checkpoint's UNet as ComfyUI loads it."),
                FramePainterType.Output(display_name="framepainter",
                                        tooltip="The trained parts beside the UNet: control encoder and matching weights. A "
                                                "Stable Video Diffusion checkpoint has none."),
                io.ClipVision.Output(display_name="clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Output(display_name="vae", tooltip="SVD's VAE."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_file: str, encoder_file: str, clip_and_vae: str, weight_dtype: str = "default"):
        return [*(stamp(folders.find, *file) for file in ((model_file, folders.UNETS), (encoder_file, folders.ENCODERS),
                                                          (clip_and_vae, folders.PICTURES))), weight_dtype]

    @classmethod
    def execute(cls, model_file: str, encoder_file: str, clip_and_vae: str,
                weight_dtype: str = "default") -> io.NodeOutput:
        check_choice("weight_dtype", weight_dtype, DTYPES)
        loaded = loading.load(
            folders.find(model_file, folders.UNETS),
            None if encoder_file == INSIDE else folders.find(encoder_file, folders.ENCODERS),
            None if clip_and_vae == INSIDE else folders.find(clip_and_vae, folders.PICTURES),
            DTYPES[weight_dtype],
        )
        return io.NodeOutput(loaded.model, loaded.weights, loaded.clip_vision, loaded.vae)


class SaveFramePainterCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSaveCheckpoint",
            display_name="Save FramePainter Checkpoint",
            description="Writes UNet, matching attention, control encoder, CLIP vision and VAE into one safetensors file, or the "
                        "model into two files in the authors' format. Load FramePainter reads both.",
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Model.Input("model", tooltip="The UNet; LoRAs on it are merged into the file."),
                FramePainterType.Input("framepainter", tooltip="Control encoder and matching weights."),
                io.String.Input("filename_prefix", default="checkpoints/framepainter",
                                tooltip="Folder and beginning of the file name under the output folder; a number is added."),
                io.ClipVision.Input("clip_vision", optional=True, tooltip="Left out of the file if not connected."),
                io.Vae.Input("vae", optional=True, tooltip="Left out of the file if not connected."),
                io.Combo.Input("form", options=FORMS, default=FORMS[0], optional=True,
                               tooltip="single file: everything in one, for sharing. authors' two files: the UNet with diffusers' "
                                       "names and the control encoder, as FramePainter was published; CLIP vision and VAE are "
                                       "left out."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, model, framepainter, filename_prefix: str, clip_vision=None, vae=None,
                form: str = FORMS[0]) -> io.NodeOutput:
        check_choice("form", form, FORMS)
        metadata = workflow_texts(cls.hidden.prompt, cls.hidden.extra_pnginfo)
        path = new_file(filename_prefix, ".safetensors")
        if form == FORMS[0]:
            return written(saving.save(path, model, framepainter, clip_vision, vae, metadata))
        return written(*saving.save_pair(path, model, framepainter, metadata))


class LoadSmallTextToImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterLoadTextToImage",
            display_name="Load Small Text-to-Image Model",
            description="Loads the small text-to-image model that comes with the pack: Stable Diffusion 1.x in miniature, for "
                        "192 x 192 pictures of one shape, such as 'a small red disc on a green ground'. For real pictures use "
                        "Load Checkpoint with a Stable Diffusion 1.x checkpoint instead.",
            search_aliases=["small model", "video-p2p", "example model"],
            inputs=[
                io.Combo.Input("model_file", options=text_to_image.listed(),
                               tooltip="A small text-to-image model, from models/framepainter or the pack itself."),
                advanced(io.Combo.Input("weight_dtype", options=list(DTYPES), default="default", optional=True,
                                        tooltip="Precision of the UNet's weights in memory. default: chosen by ComfyUI for your "
                                                "card.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The UNet."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder, with the tokenizer of Stable Diffusion 1.x."),
                io.Vae.Output(display_name="vae", tooltip="The autoencoder: eight pixels a latent."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_file: str, weight_dtype: str = "default"):
        return [stamp(folders.find, model_file, text_to_image.KINDS), weight_dtype]

    @classmethod
    def execute(cls, model_file: str, weight_dtype: str = "default") -> io.NodeOutput:
        check_choice("weight_dtype", weight_dtype, DTYPES)
        return io.NodeOutput(*text_to_image.load(folders.find(model_file, text_to_image.KINDS), DTYPES[weight_dtype]))


NODES = [LoadFramePainter, LoadSmallTextToImage, SaveFramePainterCheckpoint]
