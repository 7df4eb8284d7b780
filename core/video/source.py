"""Frames of videos, of folders of pictures and of batches in memory, by number and by time.

Legend: T frames, H W pixels. Frames come out resized and centre-cropped, (3, H, W) uint8.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..picture_file import read_picture
from .colour import ToRGB

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
# Files that lie beside videos and are none; everything else is tried, for there are many containers.
BESIDE = PICTURES | {".txt", ".json", ".jsonl", ".md", ".csv", ".srt", ".vtt", ".ass", ".nfo", ".xml", ".yaml", ".yml", ".npz",
                     ".npy", ".py", ".log", ".zip", ".tar", ".gz", ".html", ".pdf", ".ini", ".db", ".url", ".part", ".wav",
                     ".mp3", ".flac", ".safetensors", ".caption", ".tags", ".md5", ".sha1", ".sha256", ".toml", ".rtf", ".pkl",
                     ".pt", ".pth", ".ckpt", ".bin", ".exr", ".hdr", ".avif", ".heic", ".jxl", ".psd", ".svg", ".m4a", ".aac",
                     ".ogg", ".opus", ".cfg", ".conf", ".bat", ".sh", ".bak", ".tmp", ".crc", ".sfv", ".lnk"}
VIDEOS = {".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".f4v", ".mpg", ".mpeg", ".m2v", ".mpe",
          ".vob", ".ts", ".m2ts", ".mts", ".mxf", ".ogv", ".ogm", ".3gp", ".3g2", ".gif", ".apng", ".rm", ".rmvb", ".divx", ".dv",
          ".y4m", ".nut", ".ivf", ".h264", ".264", ".hevc", ".h265", ".265", ".av1", ".obu", ".wtv"}
ASPECTS = (1 / 8, 8.0)  # of pixels; what a file states beyond these is no aspect of anything filmed
SEEK_BEYOND = 3.0  # seconds between wanted frames from which jumping to a keyframe is tried


class VideoError(ValueError):
    """A video that cannot be used; the text says why."""


class Clip(Protocol):
    """A source of frames. `name` tells it from others and stays the same in every run; `stamp` changes with its content."""

    name: str
    stamp: str

    def times(self, check: Callable[[], None]) -> list[float]:
        """Seconds of each frame, ascending. Raises VideoError."""
        ...

    def read(self, numbers: Sequence[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        """Frames by number, (3, H, W) uint8; those that cannot be decoded are missing."""
        ...


def crop_to(picture: Tensor, height: int, width: int, pixel_aspect: float = 1.0) -> Tensor:
    """Resize to cover (antialiased, bicubic) and crop the middle: (3, h, w) uint8 -> (3, H, W) uint8.

    Args:
        pixel_aspect: width of a pixel in parts of its height; 1 for square ones.
    """
    h, w = picture.shape[-2:]
    if (h, w) == (height, width) and pixel_aspect == 1.0:
        return picture
    scale = max(height / h, width / (w * pixel_aspect))
    size = (max(height, round(h * scale)), max(width, round(w * pixel_aspect * scale)))
    out = F.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)[0].round().clamp(0, 255).to(torch.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return out[:, top:top + height, left:left + width].contiguous()


def to_tensor(picture: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 array -> (3, h, w) tensor."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()


# ---- video files -----------------------------------------------------------------------------------------------------


class VideoFile:
    """A file in any container that PyAV reads. Rotation marks and non-square pixels are heeded."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self._marks: list[int] = []  # presentation times in units of the stream; empty if the packets have none
        self.aspect = 1.0  # of a pixel
        self.colours = ToRGB()

    @property
    def stamp(self) -> str:
        return str(self.path.stat().st_size)

    def open(self) -> Any:
        """The container, to be closed by the caller.

        Raises:
            VideoError: no video that can be decoded here.
        """
        import av

        try:
            container = av.open(str(self.path))
        except (OSError, ValueError) as error:  # PyAV's errors are both
            raise VideoError(f"cannot be opened ({_short(error)})") from None
        if not container.streams.video:
            container.close()
            raise VideoError("has no picture stream")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # PyAV has no decoder for it, and crashes when asked for one
            container.close()
            raise VideoError("is encoded in a way that this FFmpeg cannot decode")
        stream.thread_type = "AUTO"
        self.colours.transfer = int(getattr(stream.codec_context, "color_trc", 0) or 0)
        self.aspect = float(stream.sample_aspect_ratio or 1)
        if not ASPECTS[0] <= self.aspect <= ASPECTS[1]:
            self.aspect = 1.0
        return container

    def times(self, check: Callable[[], None]) -> list[float]:
        with self.open() as container:
            stream = container.streams.video[0]
            marks, whole = set(), True
            try:
                for packet in container.demux(stream):  # reads, but does not decode
                    check()
                    if packet.size and not getattr(packet, "is_discard", False):
                        whole &= packet.pts is not None
                        marks.add(packet.pts)
            except (OSError, ValueError) as error:
                if not marks:
                    raise VideoError(f"cannot be read ({_short(error)})") from None
            if not marks:
                raise VideoError("has no frames")
            if whole and stream.time_base:
                self._marks = sorted(marks)
                return [float((mark - self._marks[0]) * stream.time_base) for mark in self._marks]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        count = sum(1 for _ in self._decoded(check))  # no times in the file: by number, at the mean rate
        return [float(i / rate) for i in range(count)]

    def _decoded(self, check: Callable[[], None]) -> Iterator[Any]:
        """All frames in order, broken ones too; a damaged end is an end."""
        with self.open() as container:
            try:
                for frame in container.decode(container.streams.video[0]):
                    check()
                    yield frame
            except (OSError, ValueError):
                return

    def read(self, numbers: Sequence[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        if not self._marks:
            wanted = set(numbers)
            return {i: self._finish(frame, height, width) for i, frame in enumerate(self._decoded(check))
                    if i in wanted and not frame.is_corrupt}
        out = self._read_seeking(sorted(set(numbers)), height, width, check)
        missing = {self._marks[n]: n for n in numbers if n not in out}
        if missing:
            # Damaged; or a container that cannot seek to a place before the frame; or a keyframe that needs what was said
            # before it, as where parameter sets change on the way. From the start on, what can be whole is whole.
            last = max(missing)
            for frame in self._decoded(check):
                if frame.pts in missing and not frame.is_corrupt:
                    out[missing[frame.pts]] = self._finish(frame, height, width)
                if frame.pts is not None and frame.pts >= last:
                    break
        return out

    def _read_seeking(self, numbers: list[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        """Frames in ascending order, those of them that are found by going on or by jumping to a keyframe before."""
        out = {}
        with self.open() as container:
            stream = container.streams.video[0]
            frames, position = container.decode(stream), self._marks[0]
            for number in numbers:
                mark = self._marks[number]
                try:
                    if mark <= position and number > 0 or float((mark - position) * stream.time_base) > SEEK_BEYOND:
                        container.seek(mark, stream=stream, backward=True)
                        frames = container.decode(stream)
                    for frame in frames:
                        check()
                        if frame.pts is None or frame.pts < mark:
                            continue
                        position = frame.pts
                        if frame.pts == mark and not frame.is_corrupt:
                            out[number] = self._finish(frame, height, width)
                        break
                except (OSError, ValueError):  # damaged here, or it cannot seek
                    continue
        return out

    def _finish(self, frame: Any, height: int, width: int) -> Tensor:
        picture = self.colours(frame)
        turns = round((getattr(frame, "rotation", 0) or 0) / 90)  # counter-clockwise; older PyAV does not tell
        aspect = 1 / self.aspect if turns % 2 else self.aspect
        return crop_to(to_tensor(np.rot90(picture, turns)), height, width, aspect)


def _short(error: Exception) -> str:
    return re.sub(r"\s*:\s*'[^']*'$", "", " ".join(str(error).split()))[:160]


# ---- pictures --------------------------------------------------------------------------------------------------------


class PictureFolder:
    """The pictures of a folder as frames, in the order of their names (2 before 10)."""

    def __init__(self, folder: Path, name: str, fps: float):
        self.folder, self.name, self.fps = folder, name, fps
        self.paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")),
                            key=lambda p: natural(p.name))

    @property
    def stamp(self) -> str:
        return f"{len(self.paths)}:{sum(p.stat().st_size for p in self.paths)}"

    def times(self, check: Callable[[], None]) -> list[float]:
        return [i / self.fps for i in range(len(self.paths))]

    def read(self, numbers: Sequence[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        out = {}
        for number in numbers:
            check()
            try:
                picture = (read_picture(self.paths[number]) * 255).round().astype(np.uint8)
            except Exception:  # noqa: S112 - Pillow's decoders raise almost anything on damaged files; the frame is missing
                continue
            out[number] = crop_to(to_tensor(picture), height, width)
        return out


class FrameBatch:
    """Frames in memory, (T, h, w, 3) in [0, 1]; its name is a digest of its content."""

    def __init__(self, images: Tensor, fps: float):
        self.images, self.fps = images, fps
        state = hashlib.sha256(f"{tuple(images.shape)} {fps}".encode())
        for image in images:
            state.update(self._bytes(image).numpy().tobytes())
        self.name = f"images-{state.hexdigest()[:10]}"
        self.stamp = self.name

    @staticmethod
    def _bytes(image: Tensor) -> Tensor:
        pixels = torch.nan_to_num(image[..., :3].detach().cpu().float()).clamp(0, 1)
        return (pixels.expand(*pixels.shape[:-1], 3) * 255).round().to(torch.uint8)

    def times(self, check: Callable[[], None]) -> list[float]:
        return [i / self.fps for i in range(len(self.images))]

    def read(self, numbers: Sequence[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        return {n: crop_to(self._bytes(self.images[n]).movedim(-1, 0).contiguous(), height, width) for n in numbers}


# ---- finding them ----------------------------------------------------------------------------------------------------


def natural(text: str) -> list[tuple]:
    """Sorting key in which numbers count as numbers. Other digits than 0 to 9, such as superscripts, count as letters."""
    parts = re.split(r"([0-9]+)", text)  # every second part is a number
    # By length and then by digits: Python refuses to make a number of thousands of them.
    keys = [(0, len(part.lstrip("0")), part.lstrip("0")) if i % 2 else (1, 0, part.lower()) for i, part in enumerate(parts)]
    return [*keys, (-1, 0, text)]


def find_clips(folder: Path, fps: float) -> list[Clip]:
    """All videos under a folder, and each folder of two or more pictures without a video beside them.

    A file whose name does not tell what it is counts as a video to try, but does not make a folder of frames one of videos.

    Args:
        fps: pictures a second of picture folders.

    Raises:
        VideoError: the folder is not there, or holds neither.
    """
    if not folder.is_dir():
        raise VideoError(f"'{folder}' is not a folder")
    clips: list[Clip] = []
    for place, inner, files in os.walk(folder):
        inner[:] = sorted((d for d in inner if not d.startswith(".")), key=natural)
        here = Path(place)
        names = sorted((f for f in files if not f.startswith(".")), key=natural)
        videos = [f for f in names if Path(f).suffix.lower() not in BESIDE]
        clips += [VideoFile(here / f, (here / f).relative_to(folder).as_posix()) for f in videos]
        endings = [Path(f).suffix.lower() for f in names]
        if VIDEOS.isdisjoint(endings) and sum(ending in PICTURES for ending in endings) >= 2:
            relative = here.relative_to(folder).as_posix()
            clips.append(PictureFolder(here, folder.name if relative == "." else relative, fps))
    if not clips:
        raise VideoError(f"'{folder}' holds no videos and no folders of pictures")
    return clips
