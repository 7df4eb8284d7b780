"""Videos and folders of pictures as frames to carry an edit through, and where the results go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..picture_file import read_picture
from ..video.reading import timing
from ..video.source import PictureFolder, VideoError, VideoFile, crop_to
from .run import CarryError

FOLDER_RATE = 25.0               # frames a second of a folder of pictures
LOSSLESS = {".mkv", ".avi"}      # written as FFV1, which keeps every bit
VIDEOS = LOSSLESS | {".mp4", ".mov"}


def open_frames(path: Path) -> VideoFrames | FolderFrames:
    """A video file or a folder of pictures.

    Raises:
        CarryError: it is neither, or cannot be read.
    """
    if path.is_dir():
        return FolderFrames(path)
    if not path.is_file():
        raise CarryError(f"'{path}' is not there. Give a video file or a folder of pictures.")
    return VideoFrames(path)


class VideoFrames:
    """Frames of a file, decoded in a process of its own. A frame that cannot be decoded repeats the one before."""

    def __init__(self, path: Path):
        self.path, self.file = path, VideoFile(path, path.name)
        try:
            about = self.file.describe(_nothing)
        except VideoError as error:
            raise CarryError(f"'{path.name}' {error}.") from None
        self.count, self.size = len(about.times), (about.height, about.width)
        self.rate = timing(about.times, about.rate).fps

    def read(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        wanted, ready, last = iter(numbers), {}, None
        upcoming = next(wanted, None)
        try:
            for number, picture, aspect in self.file.frames(list(numbers), _nothing):
                shown = torch.from_numpy(np.ascontiguousarray(picture))
                if tuple(shown.shape[:2]) != self.size or aspect != 1.0:
                    shown = crop_to(shown.movedim(-1, 0), *self.size, aspect).movedim(0, -1).contiguous()
                ready[number] = shown
                while upcoming in ready:
                    last = ready.pop(upcoming)
                    yield last
                    upcoming = next(wanted, None)
        except VideoError as error:
            raise CarryError(f"'{self.path.name}' {error}.") from None
        while upcoming is not None:  # from here on something could not be decoded
            last = ready.pop(upcoming, last)
            if last is None:
                raise CarryError(f"'{self.path.name}' has frames that cannot be decoded (frame {upcoming}).")
            yield last
            upcoming = next(wanted, None)

    def close(self) -> None:
        self.file.close()


class FolderFrames:
    """Pictures of one size in a folder, in the order of their names."""

    rate = FOLDER_RATE

    def __init__(self, path: Path):
        self.path, self.paths = path, PictureFolder(path, path.name, FOLDER_RATE).paths
        if not self.paths:
            raise CarryError(f"'{path}' holds no pictures.")
        self.count, self.size = len(self.paths), tuple(as_bytes(self.paths[0]).shape[:2])

    def read(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        for number in numbers:
            picture = as_bytes(self.paths[number])
            if tuple(picture.shape[:2]) != self.size:
                raise CarryError(f"'{self.paths[number].name}' is {picture.shape[1]} x {picture.shape[0]} pixels, the first "
                                 f"picture {self.size[1]} x {self.size[0]}. Give pictures of one size.")
            yield picture

    def close(self) -> None:
        pass


def _nothing() -> None:
    pass


def picture_from(path: Path, grey: bool = False) -> Tensor:
    """A picture file, (H, W, 3) in [0, 1], or (H, W) if grey.

    Raises:
        CarryError: it cannot be read.
    """
    try:
        return torch.from_numpy(read_picture(path, grey))
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise CarryError(f"'{path}' cannot be read as a picture ({type(error).__name__}: {' '.join(str(error).split())[:120]})."
                         ) from None


def as_bytes(path: Path) -> Tensor:
    return (picture_from(path) * 255).round().byte()


class PictureWriter:
    """Frames as OUT/00000.png and so on."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, picture: Tensor) -> None:
        """(H, W, 3) or (H, W), bytes or floats in [0, 1]."""
        pixels = picture if picture.dtype == torch.uint8 else (picture * 255).round().byte()
        with replacing(self.folder / f"{number:05d}.png") as partial:
            Image.fromarray(pixels.cpu().numpy()).save(partial, "PNG", compress_level=1)

    def close(self) -> None:
        pass


class VideoWriter:
    """Frames as a video with the sound of another: H.264 of high quality, or FFV1, which keeps every bit."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float, sound_of: Path | None):
        import av

        self.path, self.partial = path, path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.container = av.open(str(self.partial), "w")
        lossless = path.suffix.lower() in LOSSLESS
        self.stream = self.container.add_stream("ffv1" if lossless else "libx264", Fraction(rate).limit_denominator(100000))
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = "bgr0" if lossless else "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        if not lossless:
            self.stream.options = {"crf": "10"}
        self.frame = av.VideoFrame
        self.sound = self._sound(av, sound_of)

    def _sound(self, av: Any, path: Path | None) -> tuple[Any, Any] | None:
        """The other video's sound, to be copied as it is; None if it has none that this container takes."""
        if path is None or not path.is_file():
            return None
        source = av.open(str(path))
        try:
            return source, self.container.add_stream_from_template(source.streams.audio[0])
        except (IndexError, ValueError, av.error.FFmpegError):
            source.close()
            return None

    def write(self, number: int, picture: Tensor) -> None:
        frame = self.frame.from_ndarray(picture.cpu().numpy(), format="rgb24")
        frame.pts = number
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.container.mux(self.stream.encode(None))
        if self.sound:
            source, out = self.sound
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = out
                    self.container.mux(packet)
            source.close()
        self.container.close()
        os.replace(self.partial, self.path)
