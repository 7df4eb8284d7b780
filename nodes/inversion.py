"""Smooth Area Perturbation, Source Conditioning, Invert EDM, Save and Load Trajectory, Normality."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..core.edm import SIGMA_MAX, karras_sigmas
from ..core.inversion import condition, sarp
from ..core.inversion.normality import CRITICAL_5_PERCENT, anderson_darling
from ..core.inversion.plot import describe, normality_picture
from ..core.inversion.trajectory import TrajectoryError, load, save
from ..host.conditioning import MicroConds, check_latent, source_conditioning
from ..host.inversion import edm as host
from ..host.outputs import new_file, output, saved_names, saved_path, stamp
from .schema import TrajectoryType, advanced, check_choice, schema, written

LIMITS = {"mirror inward": "inward", "clamp (released)": "clamp"}
BORDERS = {"repeat": "repeat", "zero (released)": "zero"}
FOLDER = "trajectories"  # under output and input; unfinished inversions too
MULTIPLE = 8


class SmoothAreaPerturbation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSARP",
            display_name="Smooth Area Perturbation",
            description="Adds invisible noise to areas without detail before a clip is inverted (I2VEdit's SARP). Without it, "
                        "areas of one colour invert to latents that are far from noise.",
            search_aliases=["SARP", "dither", "I2VEdit"],
            inputs=[
                io.Image.Input("images", tooltip="The clip's frames, at the size at which they will be edited."),
                io.Float.Input("threshold", default=sarp.THRESHOLD, min=0.0, max=10.0, step=0.001, round=0.00001,
                               tooltip="Largest gradient that counts as smooth: mean over the channels of the Sobel filters' "
                                       "absolute values, for pixels from -1 to 1. More makes more areas count."),
                io.Float.Input("noise_scale", default=sarp.SCALE, min=0.0, max=1.0, step=0.0005, round=0.00001,
                               tooltip="Standard deviation of the noise, for pixels from -1 to 1. 0.0005 to 0.005 are useful; 0.1 "
                                       "breaks the motion; 0 changes nothing."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                             tooltip="Seed of the noise."),
                io.Combo.Input("limits", options=list(LIMITS), default="mirror inward", optional=True,
                               tooltip="What happens at pure white and black, where noise fits on one side only. mirror inward: "
                                       "noise that would leave the range is mirrored. clamp (released): it is cut off, so half of "
                                       "the noise is lost there."),
                advanced(io.Combo.Input("border", options=list(BORDERS), default="repeat", optional=True,
                                        tooltip="What lies beyond the picture's border when edges are detected. zero (released): "
                                                "grey, so the outermost pixels of most areas count as an edge and get no noise.")),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The perturbed clip."),
                io.Image.Output(display_name="first_frame", tooltip="The first frame with noise of its own, for Source "
                                                                    "Conditioning."),
                io.Image.Output(display_name="key_frame", tooltip="The first frame with a third noise, for Source Conditioning."),
                io.Mask.Output(display_name="smooth_area", tooltip="White where noise was added, one mask for each frame."),
            ],
        )

    @classmethod
    def execute(cls, images, threshold: float, noise_scale: float, seed: int, limits: str = "mirror inward",
                border: str = "repeat") -> io.NodeOutput:
        check_choice("limits", limits, LIMITS)
        check_choice("border", border, BORDERS)
        generator = torch.Generator("cpu").manual_seed(seed)
        pictures, smooth = sarp.perturb_frames(images[..., :3], generator, threshold, noise_scale, LIMITS[limits], BORDERS[border])
        return io.NodeOutput(*pictures, smooth.float())


class SourceConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSourceConditioning",
            display_name="Source Conditioning",
            description="Prepares a source clip for Invert EDM: its latents, and the conditioning that I2VEdit inverts with.",
            inputs=[
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder."),
                io.Vae.Input("vae", tooltip="SVD's VAE."),
                io.Image.Input("images", tooltip="The clip's frames, with noise from Smooth Area Perturbation. Both sides must be "
                                                 "multiples of 8."),
                io.Image.Input("first_frame", optional=True,
                               tooltip="From Smooth Area Perturbation. CLIP and the condition of the later frames use it. Without "
                                       "it, the clip's first frame."),
                io.Image.Input("key_frame", optional=True,
                               tooltip="From Smooth Area Perturbation. The condition of the first frame uses it. Without it, the "
                                       "clip's first frame."),
                io.Int.Input("fps_id", default=condition.FPS_INVERSION, min=0, max=1023, optional=True,
                             tooltip="Frame rate number as the network sees it; released value 8."),
                io.Int.Input("motion_bucket_id", default=condition.MOTION_BUCKET, min=0, max=1023, optional=True,
                             tooltip="Amount of motion as the network sees it; released value 127."),
                io.Float.Input("augmentation", default=condition.AUGMENTATION, min=0.0, max=10.0, step=0.005, round=0.001,
                               optional=True,
                               tooltip="Standard deviation of the noise added to the condition's pixels (range -1 to 1) before "
                                       "the VAE; the network is also told this number. Released value 0.02."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, optional=True,
                             tooltip="Seed of the noise of 'augmentation'."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For Invert EDM."),
                io.Latent.Output(display_name="latent", tooltip="The clip's latents, for Invert EDM."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, vae, images, first_frame=None, key_frame=None, fps_id: int = condition.FPS_INVERSION,
                motion_bucket_id: int = condition.MOTION_BUCKET, augmentation: float = condition.AUGMENTATION,
                seed: int = 0) -> io.NodeOutput:
        height, width = check_size("images", images)
        copies = []
        for name, picture in (("first_frame", first_frame), ("key_frame", key_frame)):
            picture = images[:1] if picture is None else picture[:1]
            if tuple(picture.shape[1:3]) != (height, width):
                raise ValueError(f"'{name}' is {picture.shape[2]} x {picture.shape[1]} pixels, 'images' are {width} "
                                 f"x {height}. Take both from the same Smooth Area Perturbation.")
            copies.append(picture[..., :3])
        noise = condition.pixel_noise(height, width, torch.Generator("cpu").manual_seed(seed))
        positive, latents = source_conditioning(clip_vision, vae, sarp.Pictures(images[..., :3], *copies),
                                                MicroConds(fps_id, motion_bucket_id, augmentation), noise)
        return io.NodeOutput(positive, {"samples": latents})


def check_size(name: str, images) -> tuple[int, int]:
    """(height, width) of pictures that the VAE takes without cropping.

    Raises:
        ValueError: a side is no multiple of 8.
    """
    height, width = images.shape[1:3]
    if height % MULTIPLE or width % MULTIPLE:
        raise ValueError(f"'{name}' are {width} x {height} pixels; both sides must be multiples of {MULTIPLE}. Resize "
                         f"them before, for instance to {max(1, round(width / MULTIPLE)) * MULTIPLE} x "
                         f"{max(1, round(height / MULTIPLE)) * MULTIPLE}.")
    return height, width


class InvertEDM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterInvertEDM",
            display_name="Invert EDM",
            description="Runs a clip backwards through the model to the noise that it could have been made from (I2VEdit). Sample "
                        "the latent with added noise turned off and with the same sigmas.",
            search_aliases=["inversion", "unsample", "DDIM inversion", "I2VEdit"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="Any Stable Video Diffusion model, without the edit's motion LoRA."),
                io.Conditioning.Input("positive", tooltip="Conditioning of the source clip, from Source Conditioning."),
                io.Latent.Input("latent", tooltip="The source clip's latents, from Source Conditioning."),
                io.Int.Input("steps", default=25, min=1, max=10000,
                             tooltip="Number of steps, on the released schedule (Karras, 700 to 0.002). More steps invert more "
                                     "exactly. Not used if sigmas is connected."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="Another noise schedule, in the sampler's order: falling noise levels."),
                io.Boolean.Input("resumable", default=False, optional=True,
                                 tooltip="Save the finished steps in output/trajectories while running, and resume from them "
                                         "after an interruption. The file is deleted at the end."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent",
                                 tooltip="Where sampling starts, at full noise: for SamplerCustom with add_noise off, or "
                                         "KSampler (Advanced) with add_noise disabled."),
                TrajectoryType.Output(display_name="trajectory", tooltip="All latents on the way, for Match Attention and Save "
                                                                         "Trajectory."),
                io.Sigmas.Output(display_name="schedule", tooltip="The sampler must use these sigmas."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, steps: int, sigmas=None, resumable: bool = False) -> io.NodeOutput:
        sigmas = torch.tensor(karras_sigmas(steps)) if sigmas is None else sigmas
        folder = output() / FOLDER if resumable else None
        found = host.invert(model, positive, latent, sigmas, folder)
        return io.NodeOutput(host.start_latent(found), found, torch.tensor(found.sigmas))


class SaveTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterSaveTrajectory",
            display_name="Save Trajectory",
            description="Writes an inversion into one safetensors file, so that the clip can be edited again without inverting it "
                        "again.",
            is_output_node=True,
            inputs=[
                TrajectoryType.Input("trajectory", tooltip="From Invert EDM or Invert DDIM."),
                io.String.Input("filename_prefix", default=f"{FOLDER}/clip",
                                tooltip="Folder and beginning of the file name under the output folder; a number is added. Load "
                                        "Trajectory lists the folder trajectories."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, trajectory, filename_prefix: str) -> io.NodeOutput:
        path = save(new_file(filename_prefix, ".safetensors"), trajectory)
        return written(path)


class LoadTrajectory(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterLoadTrajectory",
            display_name="Load Trajectory",
            description="Reads an inversion that Save Trajectory wrote.",
            inputs=[io.Combo.Input("file", options=saved_names(FOLDER),
                                   tooltip="From the folder trajectories under output or input.")],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="Where sampling starts, as the inversion returned it."),
                TrajectoryType.Output(display_name="trajectory", tooltip="For Match Attention, if it comes from Invert EDM; for "
                                                                         "Prompt Attention and Null-Text, if it comes from Invert "
                                                                         "DDIM."),
                io.Sigmas.Output(display_name="schedule", tooltip="The sampler must use these sigmas."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str):
        return [file, stamp(saved_path, file, FOLDER)]

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        found = load(saved_path(file, FOLDER))
        if found.reached < found.steps:
            raise TrajectoryError(f"'{file}' has {found.reached} of {found.steps} steps: an interrupted inversion left it. Run "
                                  "the inversion again with 'resumable' on, and save the result.")
        return io.NodeOutput(host.start_latent(found), found, torch.tensor(found.sigmas))


class NormalityReadOut(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterNormality",
            display_name="Normality",
            description="How much like noise an inverted latent is: the Anderson-Darling statistic (I2VEdit, Table 2) and a "
                        "histogram. Smaller is better; compare clips of the same size.",
            search_aliases=["Anderson-Darling", "Gaussian", "I2VEdit"],
            is_output_node=True,
            inputs=[io.Latent.Input("latent", tooltip="The inverted latent from Invert EDM; any other latent works too.")],
            outputs=[
                io.Float.Output(display_name="statistic", tooltip="Statistic of the whole clip. Pure noise stays below 0.8; clips "
                                                                  "without perturbation reach thousands."),
                io.Image.Output(display_name="histogram", tooltip="Histograms of the standardised values of the clip and of each "
                                                                  "channel, with the normal curve."),
                io.String.Output(display_name="table", tooltip="Statistic, mean and standard deviation of the clip and of each "
                                                               "channel."),
            ],
        )

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        samples = check_latent(latent)
        found = anderson_darling(samples)
        rows = [("clip", samples), *((f"channel {c}", samples[:, c]) for c in range(samples.shape[1]))]
        table = "\n".join(f"{name}: {describe(anderson_darling(values))}" for name, values in rows)
        table += (f"\n(normal at the 5 % level: below {CRITICAL_5_PERCENT}, whatever mean and deviation are; Invert EDM's latent "
                  f"is at full noise, where a deviation of {host.full_noise(SIGMA_MAX):.0f} is 1 if its schedule starts at "
                  f"{SIGMA_MAX:g})")
        pictures = torch.cat([normality_picture(values, name) for name, values in rows])
        return io.NodeOutput(found.statistic, pictures, table, ui=ui.PreviewText(table))


NODES = [SmoothAreaPerturbation, SourceConditioning, InvertEDM, SaveTrajectory, LoadTrajectory, NormalityReadOut]
