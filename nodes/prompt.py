"""Invert DDIM, Null-Text, Prompt Edit, Prompt Attention, Word Map: editing a video by changing words (Video-P2P)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from comfy_api.latest import io

from ..core.attention.alignment_picture import alignment_picture
from ..core.attention.edit import Edit
from ..core.attention.prompt import MAP_SCALE
from ..core.attention.word_map import heat, word_mask, word_sheet
from ..core.attention.words import WordError, edit_of, find_words
from ..core.inversion.null_text import NullTextSettings, reconstruction_error
from ..core.inversion.trajectory import TrajectoryError
from ..core.training.one_shot.presets import PRECISIONS
from ..host.attention.prompt_text import PromptPlan, encode, read_prompt
from ..host.attention.word_chips import ALIGNMENTS
from ..host.inversion import ddim
from ..host.outputs import output
from ..host.sampling.edit_run import BRANCHES, Settings
from ..host.sampling.video_p2p import prompt_attention
from ..host.sampling.word_map import read_maps
from .schema import EditPlanType, NullTextType, TrajectoryType, advanced, check_choice, drawn_by, schema

FOLDER = "trajectories"  # under output; unfinished inversions and optimisations
PROMPTS = ("edited", "source")
PIXELS = 8  # of a latent cell's side
PLACEHOLDER = (1, 64, 64)  # the black mask that Load Image gives with an opaque picture


class InvertDDIM(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterInvertDDIM",
            display_name="Invert DDIM",
            description="Runs a video backwards through a text-to-image model to the noise that it could have been made from "
                        "(Video-P2P). Sample the latent with added noise turned off and the same sigmas.",
            search_aliases=["inversion", "unsample", "DDIM inversion", "video-p2p"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.x model from Video Text Model."),
                io.Conditioning.Input("positive", tooltip="The source prompt: source of Prompt Edit, or CLIP Text Encode."),
                io.Latent.Input("latent", tooltip="The video's latents, one for each frame: VAE Encode of all frames."),
                io.Int.Input("steps", default=50, min=1, max=999,
                             tooltip="Steps of the inversion and of the edit. More follow the video more closely and take "
                                     "longer; 50 as published."),
                io.Boolean.Input("resumable", default=False, optional=True,
                                 tooltip="Save what is done to output/trajectories while running, and continue from there after "
                                         "an interruption. The file is deleted at the end."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="Where sampling starts, at full noise: for SamplerCustom with "
                                                                "add_noise off."),
                TrajectoryType.Output(display_name="trajectory", tooltip="All latents on the way, for Prompt Attention, Null-Text "
                                                                         "and Save Trajectory."),
                io.Sigmas.Output(display_name="schedule", tooltip="The sampler must use these sigmas."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, steps: int, resumable: bool = False) -> io.NodeOutput:
        if len(latent["samples"]) < 2:
            raise TrajectoryError("'latent' has one frame; editing a video needs at least two. Connect VAE Encode of "
                                  "all frames.")
        found = ddim.invert(model, positive, latent, steps, _folder(resumable))
        return io.NodeOutput(ddim.start_latent(found), found, torch.tensor(found.sigmas))


class NullText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterNullText",
            display_name="Null-Text",
            description="Finds for each step an embedding of the empty prompt with which guided sampling reproduces the source "
                        "video (Video-P2P's null-text optimisation). Slow, and not needed with the stored trajectory.",
            search_aliases=["null-text inversion", "video-p2p"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the video was inverted with."),
                TrajectoryType.Input("trajectory", tooltip="The trajectory of the video, from Invert DDIM."),
                io.Conditioning.Input("negative", tooltip="The empty prompt: CLIP Text Encode without text."),
                io.Float.Input("guidance", default=7.5, min=1.0, max=100.0, step=0.5, round=0.01,
                               tooltip="Guidance scale with which sampling should reproduce the video. Use the same number as the "
                                       "sampler's cfg."),
                io.Int.Input("iterations", default=10, min=1, max=1000,
                             tooltip="Largest number of updates per step. More come closer to the video and take longer; 10 as "
                                     "published."),
                io.Combo.Input("precision", options=list(PRECISIONS), default="fp32", optional=True,
                               tooltip="Precision of the computation. fp32 comes closest; bf16 and fp16 take half the memory."),
                io.Boolean.Input("checkpointing", default=False, optional=True,
                                 tooltip="Gradient checkpointing: takes less memory and a third more time."),
                io.Boolean.Input("resumable", default=False, optional=True,
                                 tooltip="Save what is done to output/trajectories while running, and continue from there after "
                                         "an interruption. The file is deleted at the end."),
            ],
            outputs=[
                NullTextType.Output(display_name="null_text", tooltip="One embedding for each step, shared by all frames: for "
                                                                      "Prompt Attention."),
                io.String.Output(display_name="report", tooltip="How far the reproduced video is from the source."),
            ],
        )

    @classmethod
    def execute(cls, model, trajectory, negative, guidance: float, iterations: int, precision: str = "fp32",
                checkpointing: bool = False, resumable: bool = False) -> io.NodeOutput:
        check_choice("precision", precision, PRECISIONS)
        found = ddim.optimise(model, trajectory, negative, NullTextSettings(guidance, iterations), precision, checkpointing,
                              _folder(resumable))
        error = reconstruction_error(found, ddim.latents_of(trajectory))
        updates = sum(len(losses) for losses in found.losses)
        return io.NodeOutput(found, f"{found.done} steps, {updates} updates. Latents of the last step differ from the source's by "
                                    f"{error:.4f} (root mean square).")


def _folder(resumable: bool) -> Path | None:
    return output() / FOLDER if resumable else None


class PromptEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterPromptEdit",
            display_name="Prompt Edit",
            description="Says what should change in a video, by two prompts: one that describes the video, and one that describes "
                        "the edit. Words may be swapped, added, left out and weighted, all in one edit.",
            search_aliases=["prompt-to-prompt", "p2p", "video-p2p", "video edit", "edit video by text", "word swap",
                            "attention reweighting"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of a Stable Diffusion 1.x checkpoint."),
                io.String.Input("source_text", multiline=True, dynamic_prompts=True, default="",
                                tooltip="What the video shows. (word:1.2) is emphasis, as everywhere."),
                io.String.Input("edited_text", multiline=True, dynamic_prompts=True, default="",
                                tooltip="What it should show. Keep the words that should stay; those that differ are swapped or "
                                        "added."),
                drawn_by(io.String.Input("words", multiline=True, default="",
                                         tooltip="Choices for single words. As chips: click where the edit may act, drag for a "
                                                 "weight. As text, one entry per line: 'dog *2' weights a word, 'cat > dog' "
                                                 "swaps, '+big' adds, 'dog 0..0.4' edits in a share of the steps; an at sign "
                                                 "before a word lets the edit act where the word looks, a minus and an at sign "
                                                 "keeps it away from there. Empty: automatic."),
                         "FRAMEPAINTER_WORDS"),
                io.Combo.Input("alignment", options=list(ALIGNMENTS), default="automatic", optional=True,
                               tooltip="How the words correspond before 'words' is applied. automatic: words that differ are "
                                       "swapped or added. swap word by word: both prompts need the same number of words. refine: "
                                       "none is swapped."),
                advanced(io.Boolean.Input("as_released", default=False, optional=True,
                                          tooltip="Repeat two errors of the published code: after a swap that changes the number "
                                                  "of tokens, later words take the maps of wrong words.")),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source", tooltip="The source prompt, for Invert DDIM."),
                io.Conditioning.Output(display_name="edited", tooltip="The edited prompt, for the sampler's positive."),
                EditPlanType.Output(display_name="plan", tooltip="What happens to each word, for Prompt Attention."),
                io.Image.Output(display_name="picture", tooltip="Which word replaces which."),
            ],
        )

    @classmethod
    def execute(cls, clip, source_text: str, edited_text: str, words: str, alignment: str = "automatic",
                as_released: bool = False) -> io.NodeOutput:
        check_choice("alignment", alignment, ALIGNMENTS)
        prompts = [read_prompt(clip, text, name) for name, text in (("source_text", source_text), ("edited_text", edited_text))]
        try:
            edit = edit_of(*prompts, words, ALIGNMENTS[alignment], as_released)
        except WordError as error:
            raise WordError(f"'words' does not fit the prompts: {error}") from None
        source, edited = encode(clip, source_text), encode(clip, edited_text)
        if not edit.changes and torch.equal(source[0][0], edited[0][0]):
            raise WordError("nothing is to change: 'source_text' and 'edited_text' are equal, and 'words' gives no "
                            "word a weight. Change a word of 'edited_text', or write for instance 'dog *2' into 'words'.")
        return io.NodeOutput(source, edited, PromptPlan(edit, source[0][0], edited[0][0]), alignment_picture(edit))


class PromptAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        share = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.001}
        return schema(
            node_id="FramePainterPromptAttention",
            display_name="Prompt Attention",
            description="Samples a video with its edited prompt. Words that stay look where they look in the source, so that the "
                        "scene and its motion stay too (Video-P2P).",
            search_aliases=["prompt-to-prompt", "p2p", "video-p2p", "local blend"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the video was inverted with."),
                EditPlanType.Input("plan", tooltip="From Prompt Edit."),
                TrajectoryType.Input("trajectory", optional=True,
                                     tooltip="The trajectory of the video, from Invert DDIM. Without it the sampler may start "
                                             "from any noise, with source_branch 'fast' or 'guided'."),
                NullTextType.Input("null_text", optional=True, tooltip="From Null-Text, for source_branch 'null-text'."),
                io.Mask.Input("blend_mask", optional=True,
                              tooltip="White where the edit may act; one mask, or one for each frame. If Prompt Edit names words "
                                      "where the edit may act, it acts only where both allow it."),
                io.Combo.Input("source_branch", options=list(BRANCHES), default=BRANCHES[0],
                               tooltip="How the source is computed beside the edit. stored trajectory: the video itself, exact. "
                                       "null-text: with optimised embeddings. fast: without guidance. guided: with guidance, like "
                                       "the edit."),
                io.Float.Input("cross_steps", default=0.2, **share,
                               tooltip="Share of the steps in which words look where they look in the source. More keeps the "
                                       "source's layout, less lets the edit's words find their own; 0.2 to 0.8 are useful."),
                io.Float.Input("temporal_steps", default=0.5, **share,
                               tooltip="Share of the steps in which frames attend to each other as in the source. More keeps its "
                                       "motion and shapes."),
                io.Boolean.Input("blend", default=True,
                                 tooltip="Restrict the edit to where the words of Prompt Edit and blend_mask let it act; outside, "
                                         "the source stays. Without either, the edit may act everywhere."),
                io.Float.Input("blend_threshold", default=0.3, **share,
                               tooltip="A word looks at a place if its map there is above this share of the map's largest value. "
                                       "More makes the area smaller."),
                advanced(io.Float.Input("blend_start", default=0.2, optional=True, **share,
                                        tooltip="Share of the steps before the edit is first restricted to its area.")),
                advanced(io.Float.Input("away_threshold", default=0.3, optional=True, **share,
                                        tooltip="The same as blend_threshold, for words where the edit may not act.")),
                advanced(io.Float.Input("cross_start", default=0.0, optional=True, **share,
                                        tooltip="Share of the steps after which words start to look where they look in the "
                                                "source.")),
                advanced(io.Float.Input("temporal_start", default=0.0, optional=True, **share,
                                        tooltip="Share of the steps after which frames start to attend as in the source.")),
                advanced(io.Int.Input("map_scale", default=MAP_SCALE, min=1, max=8, optional=True,
                                      tooltip="The words' maps come from the layers whose size is the latent's divided by this. 4 "
                                              "suits 512 pixels; 2 gives finer areas for videos of 256 pixels and less.")),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="A copy of the model for the sampler, which also needs Invert "
                                                                   "DDIM's latent and sigmas, euler, and added noise turned off.")],
        )

    @classmethod
    def execute(cls, model, plan, source_branch: str, cross_steps: float, temporal_steps: float, blend: bool,
                blend_threshold: float, trajectory=None, null_text=None, blend_mask=None, blend_start: float = 0.2,
                away_threshold: float = 0.3, cross_start: float = 0.0, temporal_start: float = 0.0,
                map_scale: int = MAP_SCALE) -> io.NodeOutput:
        check_choice("source_branch", source_branch, BRANCHES)
        for name, start, end in (("cross", cross_start, cross_steps), ("temporal", temporal_start, temporal_steps)):
            if start > end:
                raise ValueError(f"{name}_start {start:g} is after {name}_steps {end:g}. Lower {name}_start or "
                                 f"raise {name}_steps.")
        settings = Settings((cross_start, cross_steps), (temporal_start, temporal_steps), source_branch, blend, blend_threshold,
                            away_threshold, blend_start, map_scale)
        out = prompt_attention(model, [plan.edit], plan.source, settings, trajectory, null_text, _given(blend_mask))
        return io.NodeOutput(out)


def _given(mask):
    """A mask as (B, H, W), None where nothing but Load Image's placeholder is connected."""
    if mask is None:
        return None
    mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    return None if tuple(mask.shape) == PLACEHOLDER and not mask.any() else mask


class WordMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterWordMap",
            display_name="Word Map",
            description="Shows where words looked while a video was edited, for each frame, and gives a mask of it, for instance "
                        "for Keep Untouched.",
            search_aliases=["attention map", "cross-attention", "video-p2p"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler ran, with Prompt Attention."),
                io.Conditioning.Input("positive", tooltip="The edited prompt, as the sampler got it."),
                io.Latent.Input("latent", tooltip="The finished edit, from the sampler."),
                io.String.Input("words", default="", tooltip="Words to show together, separated by commas. Empty: those that are "
                                                             "swapped, added or weighed."),
                io.Combo.Input("prompt", options=list(PROMPTS), default="edited",
                               tooltip="Words of the edited prompt, where they look in the edit, or words of the source prompt."),
                io.Float.Input("threshold", default=0.3, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="The mask is white where the map is above this share of its largest value in the frame. "
                                       "More makes it smaller."),
                io.Image.Input("images", optional=True, tooltip="The video's frames, to lay the map over."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Where the words look, one mask for each frame, at the video's size."),
                io.Image.Output(display_name="maps", tooltip="The same in colour, from black through red and yellow to white, one "
                                                             "picture for each frame."),
                io.Image.Output(display_name="all_words", tooltip="A row for every word of the prompt, with up to eight frames."),
                io.Mask.Output(display_name="blend_mask", tooltip="Where the edit was allowed to act at the end, one mask for "
                                                                  "each frame."),
            ],
        )

    @classmethod
    def execute(cls, model, positive, latent, words: str, prompt: str, threshold: float, images=None) -> io.NodeOutput:
        check_choice("prompt", prompt, PROMPTS)
        found, plan = read_maps(model, positive, latent)
        edit = plan.edits[0]
        asked, index = (edit.edited, 1) if prompt == "edited" else (edit.source, 0)
        size = tuple(PIXELS * side for side in latent["samples"].shape[-2:])
        maps = found.maps.of(index, _chosen(edit, prompt, words))
        if images is not None:
            images = _frames(images, len(maps), size)
        shown = [n for n, word in enumerate(asked.words) if word]
        area = torch.ones(len(maps), *size) if found.masks is None else torch.nn.functional.interpolate(
            found.masks.float(), size=size, mode="nearest")[0]
        return io.NodeOutput(word_mask(maps, size, threshold), heat(maps, size, images),
                             word_sheet(found.maps.sums[index][:, shown], [asked.words[n] for n in shown]), area)


def _chosen(edit: Edit, prompt: str, words: str) -> list[int]:
    """Numbers of the words that are asked for."""
    asked = edit.edited if prompt == "edited" else edit.source
    names = [name.strip() for name in words.replace("\n", ",").split(",") if name.strip()]
    if not names:
        changed = [n for n, mark in enumerate(edit.marks) if mark.state != "kept" or mark.weight != 1.0]
        if prompt == "source":
            changed = sorted({i for n in changed for i in edit.marks[n].origin})
        if changed:
            return changed
        raise WordError(f"no word of the {prompt} prompt is swapped, added or weighed, so 'words' must say which to "
                        f"show. Write one of them: {', '.join(asked.words)}.")
    out = []
    for name in names:
        places = find_words(asked, name)
        if not places:
            raise WordError(f"the word '{name}' is not in the {prompt} prompt, which has {', '.join(asked.words)}.")
        out += [n for place in places for n in place]
    return sorted(set(out))


def _frames(images, count: int, size: tuple[int, int]):
    """A video's frames at the size of its maps."""
    if len(images) not in (1, count):
        raise ValueError(f"'images' has {len(images)} frames, the edit has {count}. Connect the edited or the source "
                         "video.")
    if not math.isclose(images.shape[2] / images.shape[1], size[1] / size[0], rel_tol=0.05):
        raise ValueError(f"'images' are {images.shape[2]} x {images.shape[1]} pixels, the edit {size[1]} x {size[0]}. "
                         "Connect the video that was edited.")
    resized = torch.nn.functional.interpolate(images[..., :3].movedim(-1, 1).float(), size=size, mode="bilinear", antialias=True)
    return resized.movedim(1, -1).cpu()


NODES = [InvertDDIM, NullText, PromptEdit, PromptAttention, WordMap]
