"""Evaluate Edits."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..host.evaluation import Pair, evaluate_set
from ..host.report import warn
from .schema import schema


class EvaluateEdits(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterEvaluate",
            display_name="Evaluate Edits",
            description="Compares edited pictures with the true ones: MSE, PSNR, SSIM, errors by area and, if asked for, LPIPS "
                        "and CLIP-FID. All pictures of a list or batch count as one set.",
            search_aliases=["metrics", "ssim", "psnr", "lpips", "fid"],
            is_output_node=True,
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("edited", tooltip="The edits, in batches or a list."),
                io.Image.Input("truth", tooltip="The picture that each edit should give, of the same size and in the same order; "
                                                "or one for all."),
                io.Image.Input("source", optional=True,
                               tooltip="The pictures before the edit, one for each or one for all. Adds a column with the values "
                                       "that the unedited picture would get."),
                io.Mask.Input("moved", optional=True,
                              tooltip="Area of the true picture (white) that the source shows at another place. Its errors are "
                                      "listed separately."),
                io.Mask.Input("disoccluded", optional=True,
                              tooltip="Area of the true picture (white) that the source does not show. Its errors are listed "
                                      "separately; with 'moved' also those of the static rest."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="Any CLIP vision model, for CLIP-FID. Needs at least two pairs; a meaningful value "
                                            "needs thousands."),
                io.Boolean.Input("lpips", default=False, optional=True,
                                 tooltip="Also compute LPIPS (AlexNet), if the package 'lpips' and its weights are installed. "
                                         "Nothing is downloaded."),
                io.Int.Input("sheet_rows", default=8, min=1, max=64, optional=True,
                             tooltip="Largest number of pairs on the contact sheet."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Table and remarks as Markdown."),
                io.String.Output(display_name="metrics", tooltip="Means, spread and every pair's values as JSON."),
                io.Image.Output(display_name="sheet", tooltip="Contact sheet: source, edit, truth, error, and areas."),
            ],
        )

    @classmethod
    def execute(cls, edited: list[Tensor], truth: list[Tensor], source: list[Tensor] | None = None,
                moved: list[Tensor] | None = None, disoccluded: list[Tensor] | None = None,
                clip_vision: list | None = None, lpips: list[bool] | None = None,
                sheet_rows: list[int] | None = None) -> io.NodeOutput:
        edits, truths = _pictures(edited), _pictures(truth)
        count = len(edits)
        if not count:
            raise ValueError("'edited' has no pictures. Connect the edits to it.")
        truths = _for_each("truth", truths, count)
        sources = _for_each("source", _pictures(source), count)
        masks = {"moved": _for_each("moved", _masks(moved), count),
                 "disoccluded": _for_each("disoccluded", _masks(disoccluded), count)}
        for i in range(count):
            _same_size("edited", edits[i], truths[i], i)
            _same_size("source", sources[i], truths[i], i)
            for name, column in masks.items():
                column[i] = _fitting_mask(name, column[i], truths[i], i)
        pairs = (Pair(f"{i}", edits[i], truths[i], sources[i], masks["moved"][i], masks["disoccluded"][i])
                 for i in range(count))
        found = evaluate_set(pairs, count, clip_vision[0] if clip_vision else None, bool(lpips and lpips[0]),
                             sheet_rows[0] if sheet_rows else 8)
        if found.notes:
            warn(" ".join(found.notes))
        report = found.report()
        return io.NodeOutput(report, found.json(), found.sheet, ui=ui.PreviewText(report))


def _pictures(batches: list[Tensor | None] | None) -> list[Tensor]:
    """A list of batches (B, H, W, C) as single pictures (H, W, 3). A list: pictures need not be of one size."""
    return [image[..., :3] for batch in batches or () if batch is not None for image in batch]


def _masks(batches: list[Tensor | None] | None) -> list[Tensor]:
    """A list of masks, (B, H, W) or (H, W) each, as single masks (H, W)."""
    return [mask for batch in batches or () if batch is not None for mask in (batch[None] if batch.ndim == 2 else batch)]


def _for_each(name: str, items: list[Tensor], count: int) -> list[Tensor | None]:
    """One item for each edit: as many as there are, one for all, or none."""
    if not items and name != "truth":
        return [None] * count
    if len(items) not in (1, count):
        raise ValueError(f"edited has {count} pictures, {name} has {len(items)}. Give one for each edit, in the "
                         "same order, or one for all.")
    return list(items) if len(items) == count else items * count


def _same_size(name: str, image: Tensor | None, truth: Tensor, index: int) -> None:
    if image is not None and image.shape[:2] != truth.shape[:2]:
        raise ValueError(f"picture {index} of '{name}' is {image.shape[1]} x {image.shape[0]}, its truth {truth.shape[1]} x "
                         f"{truth.shape[0]}. Resizing here would change the metrics: bring both to one size before this node, for "
                         "instance with Upscale Image.")


def _fitting_mask(name: str, mask: Tensor | None, truth: Tensor, index: int) -> Tensor | None:
    if mask is None or mask.shape == truth.shape[:2]:
        return mask
    if not mask.numel():
        raise ValueError(f"mask {index} of '{name}' is empty ({mask.shape[1]} x {mask.shape[0]} pixels). Connect another mask, or "
                         "none.")
    if float(mask.max()) == 0:  # Load Image gives a small black mask for a picture without transparency: no area
        return truth.new_zeros(truth.shape[:2])
    raise ValueError(f"mask {index} of '{name}' is {mask.shape[1]} x {mask.shape[0]}, its truth {truth.shape[1]} x "
                     f"{truth.shape[0]}. Bring the mask to the truth's size.")


NODES = [EvaluateEdits]
