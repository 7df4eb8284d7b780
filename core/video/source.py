"""Frames of videos, of folders of pictures and of batches in memory, by number and by time.

Legend: T frames, H W pixels. Frames come out resized and centre-cropped, (3, H, W) uint8.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..picture_file import read_picture
from .process import Decoder, VideoError

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

    def close(self) -> None:
        """Let go of what reading has opened; it may be read again."""
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
    # Of bytes, as Pillow does it: a sixth of the time that floats take.
    out = F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return out[:, top:top + height, left:left + width].contiguous()


def to_tensor(picture: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 array -> (3, h, w) tensor."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).contiguous()


# ---- video files -----------------------------------------------------------------------------------------------------


class Description(NamedTuple):
    """What a file says about itself.

    times: seconds of each frame, ascending from 0.  height, width: upright, of square pixels.  rate: frames a second as stated.
    origin: seconds of the first frame by the file's clock.  cut: whether it promises more frames than it has.  notes: what is
    done to its frames, as players do it.  marks, keys: see container.py.  numbered: the marks are numbers of frames.
    """

    times: list[float]
    height: int
    width: int
    rate: float | None
    origin: float
    cut: bool
    notes: list[str]
    marks: np.ndarray
    keys: np.ndarray
    numbered: bool


class VideoFile:
    """A file in any container that PyAV reads, decoded in a process of its own; see process.py.

    `damaged`: numbers of frames that were asked for and cannot be decoded.  `notes`: what was done to the
    colours of those that came.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name
        self.damaged: set[int] = set()
        self.notes: set[str] = set()
        self._description: Description | None = None
        self._decoder: Decoder | None = None
        self._jumps = True  # whether frames may be reached by jumping to keyframes

    @property
    def stamp(self) -> str:
        return str(self.path.stat().st_size)

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _ask(self, do: str, check: Callable[[], None], payload: bytes = b"", **request: Any) -> Iterator[tuple[dict, np.ndarray]]:
        if self._decoder is None or not self._decoder.close.alive:
            self._decoder = Decoder(self.path)
        return self._decoder.ask(do, check, payload, **request)

    def describe(self, check: Callable[[], None]) -> Description:
        """What the file is. Raises VideoError."""
        if self._description is None:
            (header, data), _ = self._ask("describe", check)
            count, keys = header["count"], header["keys"]
            times = np.frombuffer(data, np.float64, count)
            marks = np.frombuffer(data, np.int64, count, 8 * count)
            self._description = Description(
                times.tolist(), header["height"], header["width"], header["rate"], header["origin"], header["cut"],
                header["notes"], marks, np.frombuffer(data, np.int64, 2 * keys, 16 * count), header["numbered"])
        return self._description

    def times(self, check: Callable[[], None]) -> list[float]:
        return self.describe(check).times

    def frames(self, numbers: Sequence[int], check: Callable[[], None]) -> Iterator[tuple[int, np.ndarray, float]]:
        """Frames as they are decoded, not always in order: number, (h, w, 3) uint8 upright, width of its pixels in their height.

        Raises:
            VideoError: the decoder crashed, hung or ran out of memory.
        """
        found = self.describe(check)
        request = {"numbers": sorted(set(numbers)), "count": len(found.marks), "numbered": found.numbered,
                   "straight": not self._jumps}
        for header, data in self._ask("frames", check, found.marks.tobytes() + found.keys.tobytes(), **request):
            if "end" in header:
                self.damaged.update(header["damaged"])
                self.notes.update(header["notes"])
                self._jumps &= header["jumps"] or request["straight"] or found.numbered
            else:
                picture = data.reshape(header["height"], header["width"], 3)
                yield header["number"], picture, header["aspect"]

    def read(self, numbers: Sequence[int], height: int, width: int, check: Callable[[], None]) -> dict[int, Tensor]:
        return {n: crop_to(to_tensor(picture), height, width, aspect) for n, picture, aspect in self.frames(numbers, check)}

    def sound(self, start: float, end: float, check: Callable[[], None]) -> tuple[np.ndarray | None, int, list[str]]:
        """The sound between two times of the pictures: (channels, samples) float32 or None, samples a second, notes.

        Channels are 1 or 2. Silence where the track says nothing; it ends where the track ends.
        """
        request = {"origin": self.describe(check).origin, "start": start, "end": end}
        wave, rate, heard, notes = None, 0, 0, []
        for header, data in self._ask("sound", check, **request):
            if "end" in header:
                notes = header["notes"]
                continue
            if wave is None:
                rate = header["rate"]
                wave = np.zeros((header["channels"], round((end - start) * rate)), np.float32)
            piece = np.frombuffer(data, np.float32).reshape(header["channels"], -1)
            first, last = max(0, header["at"]), min(wave.shape[1], header["at"] + piece.shape[1])
            if first < last:
                wave[:, first:last] = piece[:, first - header["at"]:last - header["at"]]
                heard = max(heard, last)
        return (wave[:, :heard] if heard else None), rate, notes


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

    def close(self) -> None:
        pass


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

    def close(self) -> None:
        pass


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
