"""Build Dataset, Procedural Dataset, Dataset Preview."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..core.data import contact_sheet, pairs
from ..core.data.motion import GivenFlow, GivenTracks, MotionSource
from ..core.data.procedural_pairs import BACKGROUNDS, ProceduralSettings, build_procedural, procedural_settings
from ..core.data.shards import ShardIndex
from ..core.data.signals import HOLES
from ..core.flow.consistency import FlowError
from ..core.flow.given import parse_flow, parse_tracks
from ..core.video.source import Clip, FrameBatch, find_clips
from ..host.data import dataset as building
from ..host.data import flow as flows
from ..host.outputs import SETS, input_folder, new_folder, shown, stamp
from ..host.outputs import dataset as dataset_of
from ..host.report import Steps, warn
from .schema import advanced, check_choice, schema

FlowType = io.Custom("FLOW")
TracksType = io.Custom("TRACKS")
flows.register()


def _new_set(name: str) -> Path:
    """The folder of a dataset to write. Raises ValueError."""
    if ".." in name:
        raise ValueError(f"name is {shown(name)}; leave out the '..'.")
    return new_folder(SETS, name, "name")


def video_folder(name: str) -> Path:
    """A folder to read, whole or relative to the input folder.

    Raises:
        ValueError: it is not there.
    """
    place = input_folder(name)
    if place is None:
        raise ValueError(f"videos is {shown(name)}, and there is no folder of that name. Give the folder's whole path, or its "
                         "name under ComfyUI's input folder.")
    return place


class BuildDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterBuildDataset",
            display_name="Build Dataset",
            description="Makes training pairs from videos: two frames between which something moves, the motion between them, and "
                        "the three editing signals. Cancel at any time; queue again with the same settings to continue.",
            search_aliases=["training data", "frame pairs", "optical flow", "webdataset"],
            is_output_node=True,
            inputs=[
                io.String.Input("videos", default="",
                                tooltip="Folder of videos: its full path, or its name under ComfyUI's input folder. Sub-folders "
                                        "count too; a folder of pictures counts as one video. Empty: use images."),
                io.String.Input("name", default="my_videos",
                                tooltip="Folder of the dataset under output/framepainter_datasets. The same name and settings "
                                        "continue it and take in new videos."),
                io.Int.Input("width", default=1024, min=16, max=8192, step=8,
                             tooltip="Width of the pairs in pixels; frames are resized and cropped at the centre. A network of "
                                     "four levels needs multiples of 64."),
                io.Int.Input("height", default=576, min=16, max=8192, step=8, tooltip="Height of the pairs in pixels."),
                io.Float.Input("min_seconds", default=1.0, min=0.0, max=3600.0, step=0.1, round=0.001,
                               tooltip="The two frames of a pair are more than this many seconds apart; the paper takes one "
                                       "second. Longer: larger edits."),
                io.Float.Input("max_seconds", default=5.0, min=0.01, max=3600.0, step=0.1, round=0.001,
                               tooltip="The two frames of a pair are at most this many seconds apart. Shorter: fewer cuts and "
                                       "disappearing objects between them."),
                io.Float.Input("min_motion", default=0.02, min=0.0, max=2.0, step=0.005, round=0.0001,
                               tooltip="Smallest mean motion of what moves, as a share of the picture's diagonal. Higher drops "
                                       "small edits."),
                io.Float.Input("max_motion", default=0.25, min=0.001, max=2.0, step=0.005, round=0.0001,
                               tooltip="Largest mean motion of what moves, as a share of the picture's diagonal. Lower drops "
                                       "large motion, for which the flow is seldom right."),
                io.Float.Input("static_camera", default=0.7, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Smallest share of the picture's border that must stand still. 1: tripod; 0: any camera."),
                io.Int.Input("pairs_per_video", default=4, min=1, max=1000, tooltip="Largest number of pairs from one video."),
                io.Combo.Input("flow_source", options=flows.choices(), default=flows.AUTOMATIC,
                               tooltip="What estimates the motion: a RAFT file in models/optical_flow, or an estimator without "
                                       "weights. automatic: RAFT if there is a file. Not used if flow or tracks are connected."),
                io.Int.Input("drag_points", default=4, min=1, max=64, tooltip="Drags of each pair."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="Seed for the choice of frames and drags. Same seed, same videos: same pairs."),
                io.Image.Input("images", optional=True, tooltip="Frames of one video, in addition to the folder."),
                io.Float.Input("fps", default=24.0, min=0.01, max=1000.0, step=0.01, round=0.001, optional=True,
                               tooltip="Frames per second of images and of folders of pictures."),
                FlowType.Input("flow", optional=True,
                               tooltip="Optical flow between consecutive frames of images, of shape (frames - 1, height, width, "
                                       "2) in pixels, from another node. Used instead of flow_source."),
                io.MultiType.Input("tracks", [TracksType, io.String], optional=True,
                                   tooltip="Tracked points of images: TRACKS, or JSON as CoTracker nodes give it. The motion is "
                                           "known around these points only."),
                advanced(io.Combo.Input("holes", options=list(HOLES), default="black", optional=True,
                                        tooltip="What the coarse edit shows where a moved part was. black: as for the models that "
                                                "come with the pack. source: the source picture.")),
            ],
            outputs=[
                io.String.Output(display_name="dataset", tooltip="The dataset's folder, for FramePainter Train and Dataset "
                                                                 "Preview."),
                io.String.Output(display_name="report", tooltip="Pairs kept, pairs dropped and why, and the names of skipped "
                                                                "videos."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, videos: str = "", **_):
        """New or changed videos make the node run again."""
        place = input_folder(videos or "")
        if not (videos or "").strip() or place is None:
            return str(videos)
        state = hashlib.sha256()
        for path in sorted(place.rglob("*")):
            try:
                state.update(f"{path}{path.stat().st_size}\0".encode(errors="replace"))
            except OSError:  # gone meanwhile
                continue
        return state.hexdigest()

    @classmethod
    def execute(cls, videos: str, name: str, width: int, height: int, min_seconds: float, max_seconds: float,
                min_motion: float, max_motion: float, static_camera: float, pairs_per_video: int, flow_source: str,
                drag_points: int, seed: int, images: Tensor | None = None, fps: float = 24.0, flow: Any = None,
                tracks: Any = None, holes: str = "black") -> io.NodeOutput:
        check_choice("holes", holes, HOLES)
        if fps <= 0:
            raise ValueError(f"fps is {fps:g}; give the frames per second, above 0.")
        folder = _new_set(name)
        settings = pairs.PairSettings(width, height, min_seconds, max_seconds, min_motion, max_motion, static_camera,
                                      pairs=pairs_per_video, drags=drag_points, holes=holes, seed=seed).checked()
        clips = _clips(videos, images, fps, flow is not None or tracks is not None)
        motion = _motion(images, flow, tracks, flow_source, clips)
        text = building.build(folder, pairs.pair_settings(settings, motion),
                              lambda writer: pairs.build_from_clips(writer, clips, motion, settings, building.callbacks()))
        return io.NodeOutput(str(folder), text, ui=ui.PreviewText(text))


def _clips(folder: str, images: Tensor | None, fps: float, given: bool) -> list[Clip]:
    """The folder's videos, and the images. Raises ValueError."""
    if given and images is None:
        raise ValueError("flow or tracks is connected, images is not. Connect the frames that they belong to.")
    if not folder.strip() and images is None:
        raise ValueError("there is nothing to take pairs from. Give a folder in videos, or connect images.")
    if given and folder.strip():
        raise ValueError(f"flow or tracks belong to images; videos is '{folder}'. Empty videos, or disconnect flow "
                         "and tracks.")
    clips = find_clips(video_folder(folder), fps) if folder.strip() else []
    return clips if images is None else [*clips, FrameBatch(images, fps)]


def _motion(images: Tensor | None, fields: Any, tracks: Any, choice: str, clips: list[Clip]) -> MotionSource:
    """The source of motion. A clip with its own motion gets its own name, because the same frames may come with other motion."""
    if fields is not None and tracks is not None:
        raise ValueError("both flow and tracks are connected. Disconnect one.")
    if fields is None and tracks is None:
        check_choice("flow_source", choice, flows.choices())
        return flows.estimator(choice)
    size = tuple(images.shape[1:3])
    if fields is not None:
        parts = [parse_flow(fields, len(images))]
        motion = GivenFlow(parts[0], size)
    else:
        parsed = parse_tracks(tracks)
        if len(parsed.path) != len(images):
            raise FlowError(f"tracks have {len(parsed.path)} frames, images {len(images)}. Connect all the frames that were "
                            "tracked.")
        parts, motion = [parsed.path, parsed.visible.to(torch.uint8)], GivenTracks(parsed, size)
    state = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts))
    clips[0].name += f"-{state.hexdigest()[:8]}"
    return motion


class ProceduralDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterProceduralDataset",
            display_name="Procedural Dataset",
            description="Makes training pairs of moving textured shapes whose motion is known exactly, for trying and checking "
                        "the training.",
            search_aliases=["synthetic data", "toy data", "training data"],
            is_output_node=True,
            inputs=[
                io.String.Input("name", default="my_shapes",
                                tooltip="Folder of the dataset under output/framepainter_datasets. The same name and settings "
                                        "continue it."),
                io.Int.Input("count", default=256, min=1, max=1_000_000, tooltip="Pairs to make."),
                io.Int.Input("width", default=256, min=16, max=4096, step=8, tooltip="Width of the pictures in pixels."),
                io.Int.Input("height", default=256, min=16, max=4096, step=8, tooltip="Height of the pictures in pixels."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFF, control_after_generate=False,
                             tooltip="The same seed and settings make the same pairs."),
                io.Int.Input("min_sprites", default=1, min=1, max=16, tooltip="Smallest number of shapes in a picture."),
                io.Int.Input("max_sprites", default=2, min=1, max=16,
                             tooltip="Largest number of shapes in a picture; more shapes hide each other more."),
                io.Float.Input("max_shift", default=0.55, min=0.01, max=2.0, step=0.05, round=0.001,
                               tooltip="Largest shift of a shape, in halves of the picture's shorter side. The smallest is 0.36 "
                                       "of this."),
                io.Float.Input("turn", default=26.0, min=0.0, max=180.0, step=1.0, round=0.1,
                               tooltip="Largest rotation between the frames, in degrees either way."),
                io.Float.Input("growth", default=0.15, min=0.0, max=1.0, step=0.05, round=0.001,
                               tooltip="Largest change of size between the frames, either way; 0.15 is 15 %."),
                io.Int.Input("texture", default=4, min=2, max=64,
                             tooltip="Patches of colour across a shape. More: finer texture, for larger pictures."),
                io.Combo.Input("background", options=list(BACKGROUNDS), default="smooth",
                               tooltip="smooth: slow changes of colour, as the small models were trained on. textured: noise, "
                                       "which is easier for flow estimators."),
                io.Int.Input("drag_points", default=4, min=1, max=64, tooltip="Drags of each pair."),
                advanced(io.Combo.Input("holes", options=list(HOLES), default="black", optional=True,
                                        tooltip="What the coarse edit shows where a moved part was.")),
            ],
            outputs=[
                io.String.Output(display_name="dataset", tooltip="The dataset's folder, for FramePainter Train and Dataset "
                                                                 "Preview."),
                io.String.Output(display_name="report", tooltip="The number of pairs, and their folder."),
            ],
        )

    @classmethod
    def execute(cls, name: str, count: int, width: int, height: int, seed: int, min_sprites: int, max_sprites: int,
                max_shift: float, turn: float, growth: float, texture: int, background: str, drag_points: int,
                holes: str = "black") -> io.NodeOutput:
        check_choice("background", background, BACKGROUNDS)
        check_choice("holes", holes, HOLES)
        if min_sprites > max_sprites:
            raise ValueError(f"min_sprites is {min_sprites}, more than max_sprites, {max_sprites}. Raise "
                             "max_sprites.")
        folder = _new_set(name)
        settings = ProceduralSettings(
            count, width, height, sprites=(min_sprites, max_sprites), shift=(round(max_shift * 0.2 / 0.55, 6), max_shift),
            turn=turn, growth=growth, texture=texture, background=background, drags=drag_points, holes=holes, seed=seed)
        text = building.build(folder, procedural_settings(settings),
                              lambda writer: build_procedural(writer, settings, building.callbacks()))
        return io.NodeOutput(str(folder), text, ui=ui.PreviewText(text))


class DatasetPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FramePainterDatasetPreview",
            display_name="Dataset Preview",
            description="Shows pairs of a dataset and their editing signals as a contact sheet, one row per pair.",
            search_aliases=["contact sheet", "training data"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input("dataset", default="",
                                tooltip="Folder of the dataset under the output folder, as the dataset nodes return it."),
                io.Int.Input("first", default=0, min=0, max=10_000_000, tooltip="Number of the first pair to show, counted from "
                                                                                "0."),
                io.Int.Input("count", default=8, min=1, max=64, tooltip="Pairs shown."),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="Columns: source, target, flow, where the flow is reliable, sketch, "
                                                              "drags, coarse edit."),
                io.String.Output(display_name="counts", tooltip="The number of pairs, which ones are shown, and the names of "
                                                                "damaged ones."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str = "", **_):
        return [dataset, stamp(lambda: dataset_of(dataset) / "dataset.json")]

    @classmethod
    def execute(cls, dataset: str, first: int, count: int) -> io.NodeOutput:
        index = ShardIndex(dataset_of(dataset), False, mm.throw_exception_if_processing_interrupted)  # only what is shown is read
        if not 0 <= first < len(index):
            raise ValueError(f"first is {first}, the dataset has {len(index)} pairs, numbered from 0. Lower it.")
        steps = Steps(count)
        last = min(first + count, len(index))
        samples = []
        for number in range(first, last):
            samples.append(index[number])
            steps.reach(number + 1 - first, last - first)
        sheet = contact_sheet.sheet(samples)
        if index.skipped:
            warn(f"{len(index.skipped)} damaged pairs are skipped, first {index.skipped[0]}.")
        text = contact_sheet.counts(len(index), index.skipped, (first, last - 1))
        return io.NodeOutput(sheet, text, ui=ui.PreviewImage(sheet, cls=cls))


NODES = [BuildDataset, ProceduralDataset, DatasetPreview]
