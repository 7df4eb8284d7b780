"""Evaluating a set of edited pictures: pixel metrics, and those that need a network (CLIP-FID, LPIPS).

Nothing is downloaded. LPIPS is computed by the `lpips` package, if that is installed and its backbone's file is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.evaluation.frechet import BIASED_BELOW, FEWEST, frechet_distance
from ..core.evaluation.metrics import Areas, areas_from_masks
from ..core.evaluation.pairs import Values, error_image, evaluate_pairs, usable
from ..core.evaluation.sheet import ERROR_TOP, heat, tint
from ..core.evaluation.table import Statistic, aggregate, combine, markdown, split_source, to_json
from ..core.sheet import contact_sheet
from ..core.weights.pickled import load_tensors
from .report import Steps
from .weights.folders import OWN

BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet, under the name torchvision gives it
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE}"
SMALLEST_LPIPS = 31  # pixels; AlexNet's second pooling needs them
EMPTY_SHEET = (1, 64, 64, 3)


class Pair(NamedTuple):
    """One edit. Pictures are (H, W, 3) in [0, 1], masks (H, W), all of one size; source and masks may be None."""

    name: str
    edited: Tensor
    truth: Tensor
    source: Tensor | None = None
    moved: Tensor | None = None
    disoccluded: Tensor | None = None


class Evaluation(NamedTuple):
    """What was found.

    names, values: the pairs evaluated, and their metrics (see `evaluate_pairs`; with lpips if asked for).
    clip_fid: None if not asked for, or not possible.
    notes: remarks that are needed to read the numbers.
    sheet: (1, h, w, 3) source, edit, truth, error and areas of the first pairs.
    """

    names: list[str]
    values: Values
    clip_fid: float | None
    notes: list[str]
    sheet: Tensor

    @property
    def summary(self) -> dict[str, dict[str, Statistic]]:
        """Column -> metric -> statistic over pairs."""
        columns = split_source(aggregate(self.values))
        if self.clip_fid is not None:
            columns["edited"]["clip_fid"] = Statistic(self.clip_fid, None, 1, 0, 0)
        return columns

    def report(self) -> str:
        """Markdown: number of pairs, table, notes."""
        pairs = f"{len(self.names)} pair{'' if len(self.names) == 1 else 's'}, mean ± standard deviation over pairs"
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"{pairs}\n\n{markdown(self.summary)}\n" + (f"\n{notes}\n" if notes else "")

    def json(self) -> str:
        """Strict JSON with the summary, a record for each pair, and the notes."""
        rows = [{"name": name, **{metric: v[i] for metric, v in self.values.items()}} for i, name in enumerate(self.names)]
        return to_json({"count": len(self.names), "clip_fid": self.clip_fid, "summary": self.summary, "notes": self.notes,
                        "pairs": rows})


class Unavailable(RuntimeError):
    """A metric cannot be computed here. The text says what is missing and where it belongs."""


def evaluate_set(pairs: Iterable[Pair], count: int, clip_vision: Any = None, use_lpips: bool = False,
                 sheet_rows: int = 8) -> Evaluation:
    """Evaluate pairs one after another. Each is read, measured and released, except those on the contact sheet.

    Args:
        pairs: of equal size within a pair.  count: how many, for the progress bar.
        clip_vision: the host's CLIP_VISION for CLIP-FID; None leaves that out.
        use_lpips: whether to compute LPIPS, if its package and backbone are there.
        sheet_rows: pairs shown on the contact sheet.
    """
    notes: list[str] = []
    perceptual = None
    if use_lpips:
        try:
            perceptual = lpips_metric()
        except Unavailable as why:
            notes.append(f"LPIPS is left out: {why}.")
    steps = Steps(count)
    names, batches, rows, features_edited, features_truth, broken = [], [], [], [], [], []
    for pair in pairs:
        edited, truth, source = (None if x is None else _bchw(x) for x in (pair.edited, pair.truth, pair.source))
        areas = areas_from_masks(*(None if m is None else m[None].cpu() for m in (pair.moved, pair.disoccluded)))
        values = evaluate_pairs(edited, truth, source=source, areas=areas)
        fine = usable(edited, truth)
        if not fine:
            broken.append(pair.name)
        if perceptual is not None:
            values["lpips"] = [perceptual(edited, truth) if fine else None]
            if source is not None:
                values["source_lpips"] = [perceptual(source, truth) if usable(source, truth) else None]
        if clip_vision is not None and fine:
            features_edited.append(clip_features(clip_vision, pair.edited[None]))
            features_truth.append(clip_features(clip_vision, pair.truth[None]))
        if len(rows) < sheet_rows:
            rows.append((pair.name, _sheet_row(pair, areas)))
        names.append(pair.name)
        batches.append(values)
        steps.step()
    values = combine(batches)
    if broken:
        notes.append(f"{len(broken)} of {len(names)} pairs have values that are not finite and count nowhere: "
                     f"{listed(broken)}. A VAE in fp16 can overflow; decode in fp32.")
    notes += _explained(values)
    fid = None
    if clip_vision is not None:
        fid = _clip_fid(features_edited, features_truth, notes)
    return Evaluation(names, values, fid, notes, _sheet(rows))


def listed(names: list[str], most: int = 8) -> str:
    """Names for a message, not more than `most`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- CLIP-FID --------------------------------------------------------------------------------------------------------


def clip_features(clip_vision: Any, images: Tensor) -> Tensor:
    """CLIP image embeddings, projected and not normalised: (B, H, W, 3) -> (B, D) float64 on the CPU.

    The host's own pixel path: shorter side to the encoder's input side (bicubic, antialiased), centre crop, rounding to
    8 bit, CLIP's mean and deviation. clean-fid's CLIP-FID prepares pixels in the same steps.
    """
    embedding = clip_vision.encode_image(images[..., :3].float())["image_embeds"]
    return embedding.reshape(len(images), -1).cpu().double()


def _clip_fid(edited: list[Tensor], truth: list[Tensor], notes: list[str]) -> float | None:
    if len(edited) < FEWEST:
        notes.append(f"CLIP-FID is left out: it compares two sets of pictures and needs {FEWEST} pairs or more, here "
                     f"{'is' if len(edited) == 1 else 'are'} {len(edited)}. Give all edits to one evaluation.")
        return None
    a, b = torch.cat(edited), torch.cat(truth)
    if not usable(a, b):
        notes.append("CLIP-FID is left out: the encoder gave features that are not finite. Load CLIP vision in fp32.")
        return None
    if len(a) < BIASED_BELOW:
        notes.append(f"CLIP-FID of {len(a)} pairs is biased upwards, more so for fewer pairs. Compare it only with sets of the "
                     f"same size, and rely on it from {BIASED_BELOW} pairs on.")
    notes.append(f"CLIP-FID uses the {a.shape[1]}-dimensional embeddings of the connected encoder. Compare it only with values "
                 "that used the same encoder.")
    return frechet_distance(a, b)


# ---- LPIPS -----------------------------------------------------------------------------------------------------------


def lpips_metric() -> Callable[[Tensor, Tensor], float | None]:
    """LPIPS 0.1 with AlexNet by the `lpips` package, from files that are here; on the CPU.

    Returns:
        A function of two pictures (1, 3, H, W) in [0, 1]; None for pictures that AlexNet is too large for.

    Raises:
        Unavailable: the package or the backbone's weights are missing, or unreadable.
    """
    if importlib.util.find_spec("lpips") is None:
        raise Unavailable("the package 'lpips' is not installed. Install it in ComfyUI's Python: pip install lpips")
    path = _backbone_file()
    import lpips

    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
    try:
        # Built without weights, so that neither package downloads; then filled from tensors-only reads.
        network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
        backbone = load_tensors(path)
        state = network.state_dict()
        wanted = {name: "features." + name.split(".", 2)[2] for name in state if name.startswith("net.slice")}
        filled = {name: backbone[old] for name, old in wanted.items()}
        filled |= load_tensors(heads)
        left = network.load_state_dict(filled, strict=False)
    except Exception as error:  # a damaged file raises almost anything
        raise Unavailable(f"its weights cannot be read ({type(error).__name__}: {error}). Get {path} and the package "
                          "'lpips' again") from error
    # The heads are stored twice in the network, as lin0 and as lins.0; the file has the first, which are the same tensors.
    absent = [n for n in left.missing_keys if n.startswith(("net.", "lin0", "lin1", "lin2", "lin3", "lin4"))]
    if absent:
        raise Unavailable(f"{path.name} or the heads of 'lpips' lack {listed(absent)}")
    network.eval().requires_grad_(False)

    def measure(a: Tensor, b: Tensor) -> float | None:
        if min(a.shape[-2:]) < SMALLEST_LPIPS:
            return None
        return float(network(a.cpu().float(), b.cpu().float(), normalize=True))

    return measure


def _backbone_file() -> Path:
    import folder_paths

    places = [Path(torch.hub.get_dir(), "checkpoints"), *map(Path, folder_paths.get_folder_paths(OWN))]
    for place in places:
        if (place / BACKBONE).is_file():
            return place / BACKBONE
    raise Unavailable(f"the weights of its backbone, {BACKBONE} (244 MB), are in none of {', '.join(map(str, places))}. "
                      f"Nothing is downloaded by itself: get {BACKBONE_URL} and put it there")


# ---- words and pictures ----------------------------------------------------------------------------------------------


def _explained(values: Values) -> list[str]:
    notes = []
    empty = {name: sum(v == 0 for v in shares) for name, shares in values.items() if name.endswith("_share")}
    notes += [f"The {name.removesuffix('_share')} area is empty in {n} of {len(values[name])} pairs; they are left out of "
              "its means." for name, n in empty.items() if n]
    if any(m is not None and s is None for m, s in zip(values.get("mse", []), values.get("ssim", []), strict=True)):
        notes.append("SSIM is left out for pictures with a side under 11 pixels, the size of its window.")
    if any(m is not None and p is None for m, p in zip(values.get("mse", []), values.get("lpips", []), strict=False)):
        notes.append(f"LPIPS is left out for pictures with a side under {SMALLEST_LPIPS} pixels.")
    return notes


def _bchw(image: Tensor) -> Tensor:
    return image[None, ..., :3].movedim(-1, 1)


def _sheet_row(pair: Pair, areas: Areas) -> list[Tensor | None]:
    edited, truth = (x[..., :3].cpu().float() for x in (pair.edited, pair.truth))
    error = heat(error_image(edited.movedim(-1, 0), truth.movedim(-1, 0)))
    known = any(area is not None for area in areas)
    return [None if pair.source is None else pair.source[..., :3].cpu(), edited, truth, error,
            tint(truth, areas) if known else None]


def _sheet(rows: list[tuple[str, list[Tensor | None]]]) -> Tensor:
    if not rows:
        return torch.ones(EMPTY_SHEET)
    headings = ["source", "edit", "truth", f"error, white at {ERROR_TOP}", "moved, disoccluded"]
    used = [i for i in range(len(headings)) if any(pictures[i] is not None for _, pictures in rows)]
    return contact_sheet([headings[i] for i in used], [(name, [pictures[i] for i in used]) for name, pictures in rows])
