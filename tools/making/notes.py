"""The Markdown note of each template."""

INSIDE = "The button at the top of *{}* opens it: all steps are inside."
OWN_PICTURE = """\
Runs as it is, on a small model that comes with the pack: it knows coloured shapes, no photographs.

**Your own:** *Upload a picture*, any size and shape, then"""
KEPT = """\
*Edit Mask* inside finds what changed; *Keep Untouched* takes everything else from the picture itself, bit for bit and at its
own size."""
OWN_VIDEO = "Runs as it is, on the small {} model of the pack. **Your own:** *Upload a video*"

NOTES = {
    "framepainter_sketch": f"""\
### Sketch on a picture, with the authors' weights

| widget | file | folder |
| --- | --- | --- |
| model_file | unet_diffusion_pytorch_model | models/framepainter |
| encoder_file | encoder_diffusion_pytorch_model | models/framepainter |
| clip_and_vae | an SVD checkpoint, such as svd_xt_1_1 | models/checkpoints |

All end in .safetensors. The first two: Hugging Face, **Yabo/FramePainter**. The third:
**stabilityai/stable-video-diffusion-img2vid-xt-1-1**. A new file shows in the lists after pressing R.

**Your own edit:** upload a picture, bypass the *Sketch* node (Ctrl+B), and press **Draw** on *Sketch Signal*. Or load a drawing
of the same aspect ratio, as here: any colour on any plain ground.

cfg 3, 25 steps and strength 0.8 are the FramePainter authors'. {INSIDE.format("Sketch Edit")}
""",
    "framepainter_small": f"""\
### Sketch on a picture

{OWN_PICTURE} **Draw** on *Sketch Signal*: the outline of a thing in its new place, about as large as it is. *Start over* removes
the example's strokes.

For photographs see *framepainter_sketch*. {INSIDE.format("Sketch Edit")}
""",
    "framepainter_evaluate": f"""\
### How far is an edit from the true picture?

Runs as it is, on the small model of the pack. **Picture**, **Sketch** and **Truth** are examples that come with it.

**Evaluate Edits** writes a table with the errors of the edit, and for comparison those of the unedited picture. Connect
batches to measure sets, masks to measure areas, and a CLIP vision model for CLIP-FID.

{INSIDE.format("Sketch Edit")}
""",
    "framepainter_train": """\
### Training on a small scale

Makes pairs of moving shapes, shows them, and trains a sketch model from the small base model that comes with the pack: a
minute or two on a CPU. Cancel at any time and queue again to resume; raise `steps` to train longer.

**From your own videos:** replace *Procedural Dataset* with *Build Dataset*, and *Load FramePainter* with *Image Only Checkpoint
Loader* and an SVD checkpoint, disconnect `framepainter`, and choose a preset that fits your card.

Everything is saved under `output/framepainter_datasets` and `output/framepainter_training`.
""",
    "framepainter_drag": f"""\
### Drag points of a picture

{OWN_PICTURE} **Drag points** on *Drag Signal*: press on something, pull it to its new place, release. Several points move it
more reliably than one. *Start over* removes the example's arrows.

{KEPT} {INSIDE.format("Drag Edit")}
""",
    "framepainter_coarse": f"""\
### Move parts of a picture

{OWN_PICTURE} **Move parts** on *Coarse Edit Signal*: lasso something, then move, turn, scale, flip, copy or delete it. *Start
over* removes the example's piece. Leave the background black, as in the model's training.

{KEPT} {INSIDE.format("Coarse Edit")}
""",
    "framepainter_combined": f"""\
### All three signals at once

Runs as it is, on the small sketch model of the pack. **Your own:** *Upload a picture*, any size and shape.

The sketch says where the outline will be (strength 0.8, the whole run), the drags where the inside comes from (0.5, the
first half). The run starts from the coarse edit (*FramePainter Dual Clock*), which needs no training.

{INSIDE.format("Combined Edit")}
""",
    "i2vedit_small": f"""\
### Edit the first frame, the clip follows: every step

{OWN_VIDEO.format("base")}, and its edited first frame.

**Invert the Clip** smooths areas without detail and finds the noise that the clip could have been made from. **Edit the Clip**
makes the edit follow the source by attention injection; **What changed** shows where it did not.

For an SVD checkpoint in *Load FramePainter*: 14 frames at 1024 x 576, motion bucket 127, preset *local edit*, guidance 2, and a
motion LoRA between model and *Match Attention*. {INSIDE.format("Edit the Clip")}
""",
    "i2vedit_long": f"""\
### Edit the first frame, the video follows

{OWN_VIDEO.format("base")} of any length, and its edited first frame.

**Propagate Edit** does everything: motion LoRA, inversion, sampling with attention injection, clip after clip. Cancel at any
time and queue again to resume. Another edited frame for the same video reuses LoRA and inversion.

For an SVD checkpoint: length 14 (SVD) or 25 (SVD-XT), about 7 sampled frames a second, 1024 x 576, 250 LoRA steps at 0.0005 and
rank 32, preset *local edit*, threshold 0.35, motion bucket 127, guidance 2, precision bf16.

{INSIDE.format("Edit Video by First Frame")}
""",
    "paint_and_propagate": f"""\
### Paint on the first frame, the whole video follows

{OWN_VIDEO.format("base")}, then **Move parts** on *Coarse Edit Signal*: lasso something, move, turn, scale, copy or erase it.
*Start over* removes the example's piece. Cancel at any time and queue again to resume.

**Another signal:** put *Sketch Signal* or *Drag Signal* in the place of the coarse edit, and its model into the upper model_file.

{INSIDE.format("Paint and Propagate")} *Drift* and the frames as pictures are saved there, too.
""",
    "i2vedit_motion_lora": f"""\
### A motion LoRA of one clip

{OWN_VIDEO.format("base")}.

**Train Motion LoRA** learns how the clip moves; **Sample Twice** makes a clip from its first frame without and with it, from the
same noise. The saved file is an ordinary LoRA for the core LoRA loaders, *Match Attention* and *Propagate Edit*.

For an SVD checkpoint: 14 frames, preset *8 GB* or *12 GB*, 250 steps at 0.0005 and rank 32.
""",
    "video_p2p_edit": f"""\
### Change a video by changing words

{OWN_VIDEO.format("text-to-image")}. It takes about a minute on a CPU.

**Prompt Edit** compares the two prompts: words that differ are swapped. `@disc` and `@square` hold the edit to where these
words look. **Where the words look** shows where the changed words looked.

For a Stable Diffusion 1.x checkpoint in *Load Checkpoint*: 8 frames of 512 x 512, 50 steps, cfg 7.5, cross_steps 0.2, map_scale
4. That has not been measured here. {INSIDE.format("Edit Video by Words")}
""",
    "video_p2p_words": f"""\
### Change a video by words, with words by hand

{OWN_VIDEO.format("text-to-image")}.

The words of **Prompt Edit** are chips: click one for where the edit may act, with Shift for where it may not, drag it sideways
for a weight. *As text* shows the same: `red > blue` swaps, `blue *2` gives a word twice its attention, `@disc` holds the edit to
where the disc is, `-@ground` would keep it away from the ground. **Words** shows what was understood.

{INSIDE.format("Edit Video by Words")}
""",
    "video_p2p_tune": f"""\
### Tune on a video, then edit it

{OWN_VIDEO.format("text-to-image")}.

**Tune on Video** trains on this one video: 40 steps here, 300 to 500 as published. It shows the loss and, below, a preview while it
trains. Cancel at any time and queue again to resume. The file that *Save Tuned Video* writes is read by *Load Tuned Video*.

{INSIDE.format("Edit Video by Words")}
""",
    "video_p2p_long": f"""\
### Change more than eight frames by words

{OWN_VIDEO.format("text-to-image")}. The example takes a few minutes on a CPU.

All 24 frames are one video for the model. If they do not fit on a card, switch on **streamed** of *Video Text Model*: the
result is the same, it takes longer. {INSIDE.format("Edit Video by Words")}
""",
    "carry_real_clip": """\
### Runs as it is

No model, no download, no graphics card. **Edited frame 8** is frame 8 of the video, edited in any program: the grass is
red. **Carry Edit** carries this to the frames before and after. All other pixels stay the same, bit for bit.

**Your own:** choose a video, save one of its frames, edit it, choose it in *Edited frame*, and write its number in *keyframes*,
counted from 0. For several keyframes use Batch Images, and separate the numbers by commas.

**Confidence** is dark where the result is a guess: edit another keyframe there.

The clip is from *Big Buck Bunny*, (c) 2008 Blender Foundation, CC BY 3.0, www.bigbuckbunny.org.
""",
}
