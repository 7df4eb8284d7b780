"""FramePainter Train."""

from __future__ import annotations

from comfy_api.latest import io

from ..core.training.framepainter.presets import MATCHING, PRECISIONS, PRESETS, PURPOSE, SIGNALS, WHAT, choose
from ..host import outputs
from ..host.training.framepainter import Inputs, train
from .schema import FramePainterType, advanced, check_choice, schema

PRESET = "as the preset"
SWITCH = {PRESET: None, "on": True, "off": False}
RUNS = "framepainter_training"


class TrainFramePainter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterTrain",
            display_name="FramePainter Train",
            description="Trains FramePainter on pairs of frames: the paper's recipe, or smaller parts of the network for smaller "
                        "cards. Cancel at any time; queue again with the same settings to resume.",
            search_aliases=["train", "fine-tune", "finetune", "lora training"],
            is_output_node=True,  # a run is worth its states alone
            inputs=[
                io.Model.Input("model", tooltip="The network to start from: Stable Video Diffusion or FramePainter. It is not "
                                                "changed; LoRAs on it are merged into the trained copy."),
                io.ClipVision.Input("clip_vision", tooltip="SVD's CLIP image encoder, used once to prepare the dataset."),
                io.Vae.Input("vae", tooltip="SVD's VAE, used to prepare the dataset and for previews."),
                io.String.Input("dataset", default="", tooltip="Folder of the dataset under the output folder, as the dataset "
                                                               "nodes return it."),
                io.String.Input("run_name", default="my_run",
                                tooltip="Folder of the run under output/framepainter_training. The same name and settings resume "
                                        "a run; other settings need another name."),
                io.Combo.Input("preset", options=list(PRESETS), default="24 GB",
                               tooltip="Settings that go together. " + " ".join(f"{k}: {v}." for k, v in PURPOSE.items())),
                io.Combo.Input("what_trains", options=[PRESET, *WHAT], default=PRESET,
                               tooltip="everything: as in the paper. The other choices leave the UNet unchanged, or add a LoRA to "
                                       "its attention layers, and need a fraction of the memory."),
                io.Combo.Input("signal", options=list(SIGNALS), default="sketch",
                               tooltip="The editing signal to learn. mixed: all three, each pair with each of them in turn."),
                io.Int.Input("steps", default=0, min=0, max=1_000_000,
                             tooltip="Optimiser steps of the whole run; 0 takes the preset's. Raise it to continue a finished "
                                     "run."),
                io.Int.Input("batch", default=0, min=0, max=256, tooltip="Batch size in pairs; 0 takes the preset's."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=1.0, step=1e-6, round=1e-9,
                               tooltip="Learning rate of AdamW; 0 takes the preset's. The paper's is 0.00001."),
                io.Combo.Input("matching_loss", options=[PRESET, *MATCHING], default=PRESET,
                               tooltip="Loss that draws attention weights to the true correspondence. off: train with the "
                                       "diffusion loss alone."),
                io.Float.Input("matching_weight", default=-1.0, min=-1.0, max=100.0, step=0.01, round=0.0001,
                               tooltip="Weight of the matching loss relative to the diffusion loss; -1 takes the preset's."),
                io.Float.Input("ema", default=-1.0, min=-1.0, max=0.99999, step=0.001, round=0.000001,
                               tooltip="Decay of the moving average of the weights (EMA), which becomes the result; 0 is off, -1 "
                                       "takes the preset's."),
                io.Int.Input("accumulate", default=0, min=0, max=1024,
                             tooltip="Gradient accumulation: batches whose gradients are added up for one step. Acts like a "
                                     "larger batch without its memory. 0 takes the preset's."),
                io.Combo.Input("precision", options=[PRESET, *PRECISIONS], default=PRESET,
                               tooltip="Precision of the computation. Trained weights are kept in fp32 with every choice."),
                io.Combo.Input("checkpointing", options=list(SWITCH), default=PRESET,
                               tooltip="Gradient checkpointing: computes activations again in the backward pass, which takes a "
                                       "third more time and a seventh of the memory for activations."),
                io.Int.Input("save_every", default=250, min=1, max=100_000,
                             tooltip="Steps between saved states; a crash loses at most these. Cancelling saves too."),
                io.Int.Input("preview_every", default=250, min=0, max=100_000,
                             tooltip="Steps between preview pictures of two training pairs; 0: none."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed for batches, noise and initial weights. The same seed and settings give the same "
                                     "result."),
                FramePainterType.Input("framepainter", optional=True,
                                       tooltip="Matching attention and control encoder to continue from. Without it they start "
                                               "new: as copies of the spatial attention, and as a new encoder."),
                advanced(io.Int.Input("rank", default=16, min=1, max=256, optional=True,
                                      tooltip="Rank of the LoRA, where one is trained. Higher can learn more and is larger.")),
                advanced(io.Combo.Input("semantics", options=["release", "paper"], default="release", optional=True,
                                        tooltip="release: matching and control act on both frames, as in the released code. "
                                                "paper: on the edited frame only. Use the trained model with the same choice.")),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained network with its matching attention."),
                FramePainterType.Output(display_name="framepainter",
                                        tooltip="The trained control encoder and matching weights."),
                io.Image.Output(display_name="loss_curve", tooltip="Losses over the steps."),
                io.Image.Output(display_name="previews", tooltip="The last previews: source, signal, edit, true target. Black if "
                                                                 "there are none."),
                io.String.Output(display_name="report", tooltip="What was trained, the estimated memory, the time it took, and "
                                                                "where the result is."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str = "", **_):
        return [dataset, outputs.stamp(lambda: outputs.dataset(dataset) / "dataset.json")]

    @classmethod
    def execute(cls, model, clip_vision, vae, dataset: str, run_name: str, preset: str, what_trains: str, signal: str,
                steps: int, batch: int, learning_rate: float, matching_loss: str, matching_weight: float, ema: float,
                accumulate: int, precision: str, checkpointing: str, save_every: int, preview_every: int, seed: int,
                framepainter=None, rank: int = 16, semantics: str = "release") -> io.NodeOutput:
        for name, value, options in (
                ("preset", preset, PRESETS), ("what_trains", what_trains, (PRESET, *WHAT)), ("signal", signal, SIGNALS),
                ("matching_loss", matching_loss, (PRESET, *MATCHING)), ("precision", precision, (PRESET, *PRECISIONS)),
                ("checkpointing", checkpointing, SWITCH), ("semantics", semantics, ("release", "paper"))):
            check_choice(name, value, options)

        def given(value, unset):
            return None if value == unset else value

        settings = choose(
            preset, what_trains=given(what_trains, PRESET), signal=signal, steps=given(steps, 0), batch=given(batch, 0),
            learning_rate=given(learning_rate, 0.0), matching_loss=given(matching_loss, PRESET),
            matching_weight=given(matching_weight, -1.0), ema=given(ema, -1.0), accumulate=given(accumulate, 0),
            precision=given(precision, PRESET), checkpointing=SWITCH[checkpointing], save_every=save_every,
            preview_every=preview_every, seed=seed, rank=rank, semantics=semantics)
        inputs = Inputs(model, framepainter, clip_vision, vae, outputs.dataset(dataset))
        return io.NodeOutput(*train(inputs, outputs.new_folder(RUNS, run_name, "run_name"), settings))


NODES = [TrainFramePainter]
