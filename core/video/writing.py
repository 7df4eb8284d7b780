"""Frames and sound -> an MP4 whose colours every player shows as they were: encoded with BT.709's matrix, and tagged so.

A file without a tag is shown by a guess from its size. Legend: T frames, H W pixels, C channels, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from ..atomic import replacing
from .colour import EXACT, chain
from .reading import Sound

BT709, LIMITED = 1, 1  # H.273's number for matrix, primaries and transfer; FFmpeg's number for 16 to 235
QUALITY = 12  # x264's constant rate factor
CHROMA = "chroma-qp-offset=-4"  # finer steps for colour than x264's own: at that factor even colours stay within two of 255
DENOMINATOR = 1001  # of rates such as 30000/1001
# Samples a second that AAC has.
RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def write(path: Path, frames: Tensor, fps: float, sound: Sound | None = None, metadata: dict[str, str] | None = None,
          quality: int = QUALITY, watch: Callable[[int], None] = lambda done: None) -> list[str]:
    """Write H.264 in 4:2:0 with AAC. The file appears whole or not at all.

    Args:
        frames: (T, H, W, 3) in [0, 1].  sound: of the same span; what is longer than the frames is left out.
        metadata: texts that are put into the file's head.
        quality: x264's constant rate factor, lower is better.
        watch: told how many frames are written; what it raises ends the writing.

    Returns:
        What was done to frames and sound to fit the format.

    Raises:
        WriteError: the file cannot be written.
    """
    height, width = frames.shape[1:3]
    rate = Fraction(fps).limit_denominator(DENOMINATOR)
    notes = []
    if height % 2 or width % 2:
        notes.append(f"{width} x {height} pixels became {width + width % 2} x {height + height % 2}: H.264 has even sizes only, "
                     "so the last row or column is repeated")
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4",
                                             options={"movflags": "use_metadata_tags+faststart"}) as file:
        for key, text in (metadata or {}).items():
            file.metadata[key] = text
        stream = _pictures(file, rate, height, width, quality)
        track = None if sound is None or not sound.wave.shape[-1] else _Track(file, sound, len(frames) / rate, notes)
        for i, frame in enumerate(_converted(frames)):
            watch(i)
            frame.pts, frame.time_base = i, 1 / rate
            file.mux(stream.encode(frame))
            if track is not None:
                track.write(file, (i + 1) / rate)
        file.mux(stream.encode())
        if track is not None:
            track.end(file)
    return notes


def _pictures(file: Any, rate: Fraction, height: int, width: int, quality: int) -> Any:
    stream = file.add_stream("libx264", rate=rate)
    stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
    stream.options = {"crf": str(quality), "x264-params": CHROMA}
    stream.time_base = stream.codec_context.time_base = 1 / rate
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED
    return stream


def _converted(frames: Tensor) -> Iterator[Any]:
    """FFmpeg's frames, one after another."""
    graph = None
    even = ((0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    for frame in frames:
        picture = torch.nan_to_num(frame.detach().float()).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
        given = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(picture, even, "edge")), format="rgb24")
        graph = graph or chain(given, [("scale", f"in_range=full:out_range=limited:out_color_matrix=bt709:{EXACT}"),
                                       ("format", "pix_fmts=yuv420p")])
        graph.push(given)
        yield graph.pull()


class _Track:
    """The sound of a file, written beside its pictures."""

    def __init__(self, file: Any, sound: Sound, seconds: Fraction, notes: list[str]):
        wave = sound.wave.detach().float().cpu()
        if wave.shape[0] not in LAYOUTS:
            notes.append(f"the sound's {wave.shape[0]} channels are mixed into one")
            wave = wave.mean(0, keepdim=True)
        self.wave = torch.nan_to_num(wave[:, :math.ceil(seconds * sound.rate)]).clamp(-1, 1).numpy()
        self.rate, self.layout, self.done = sound.rate, LAYOUTS[len(wave)], 0
        rate = min(RATES, key=lambda r: (r < sound.rate, abs(r - sound.rate)))
        if rate != sound.rate:
            notes.append(f"the sound's {sound.rate} samples a second became {rate}, which AAC supports")
        self.stream = file.add_stream("aac", rate=rate, layout=self.layout)
        self.resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=rate)

    def write(self, file: Any, until: Fraction) -> None:
        """Write the sound up to a time in seconds."""
        last = min(math.ceil(until * self.rate), self.wave.shape[1])
        if last <= self.done:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(self.wave[:, self.done:last]), format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.done, Fraction(1, self.rate)
        self.done = last
        self._encode(file, frame)

    def end(self, file: Any) -> None:
        self._encode(file, None)
        file.mux(self.stream.encode(None))

    def _encode(self, file: Any, frame: Any) -> None:
        for piece in self.resampler.resample(frame):
            file.mux(self.stream.encode(piece))
