"""Decoded frames -> RGB as a player shows them: the matrix, range and transfer that the file states, or that players assume.

FFmpeg's own scaler does the conversion. Older PyAV hands it neither matrix nor range, so the conversion goes through a filter
graph. HDR transfers are undone here and tone-mapped, as FFmpeg's scaler leaves them as they are.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import av.filter
import numpy as np

# H.273's numbers for matrix coefficients -> names of FFmpeg's scaler. 0 is RGB, 2 unspecified, 10 constant luminance, which the
# scaler reads as 9.
MATRICES = {1: "bt709", 4: "fcc", 5: "bt470", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
PQ, HLG = 16, 18  # H.273's numbers for transfer characteristics
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
LIMITED, FULL = 1, 2
# What the scaler has no matrix for; a frame of such a kind is read by its size, and the report says so.
UNKNOWN = {8: "YCgCo", 11: "SMPTE 2085", 12: "chromaticity-derived", 13: "chromaticity-derived", 14: "ICtCp", 15: "IPT-C2",
           16: "YCgCo", 17: "YCgCo"}
WIDE = 9  # H.273's number for BT.2020's primaries
HD_WIDTH, HD_HEIGHT = 1280, 576  # an untagged picture from this width on, or higher than this, is taken as BT.709

EXACT = "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp:sws_dither=none"  # of the scaler: within rounding

SCALER_WHITE = 255 << 8  # what the scaler makes of full white in 16 bit
REFERENCE_WHITE = 203.0  # cd/m2, ITU-R BT.2408
PEAK = 1000.0  # cd/m2 of the display that HLG is shown on, BT.2100
KNEE = 0.8  # of reference white: what is darker keeps its linear light, what is brighter is pressed under 1
WIDE_TO_SRGB = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
WIDE_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)  # BT.2020


def matrix_of(frame: Any) -> str | None:
    """FFmpeg's name of the matrix of a frame; None for RGB and grey ones."""
    if frame.format.is_rgb or sum(not c.is_alpha for c in frame.format.components) < 3:
        return None
    stated = MATRICES.get(int(frame.colorspace))
    return stated or ("bt709" if frame.width >= HD_WIDTH or frame.height > HD_HEIGHT else "smpte170m")


def full_range(frame: Any) -> bool:
    """Whether black is 0. What is not tagged is limited, but grey, which FFmpeg itself writes in full range."""
    grey = matrix_of(frame) is None and not frame.format.is_rgb
    return int(frame.color_range) == FULL or frame.format.name.startswith("yuvj") or (grey and int(frame.color_range) != LIMITED)


def notes_about(stream: Any, frame: Any) -> list[str]:
    """Notes on what in a stream's colours, judged by its first frame, is not read as intended."""
    notes = []
    if matrix_of(frame) and int(frame.colorspace) in UNKNOWN:
        notes.append(f"the colours are stored as {UNKNOWN[int(frame.colorspace)]}, which FFmpeg cannot convert; they are read as "
                     "those of an ordinary video of this size and will look wrong")
    wide = int(getattr(stream.codec_context, "color_primaries", 0) or 0) == WIDE
    if wide and int(getattr(stream.codec_context, "color_trc", 0) or 0) not in TRANSFERS:
        notes.append("the video is made for wide-gamut screens (BT.2020); its values are kept and look paler on other screens")
    return notes


class ToRGB:
    """Converts the frames of one stream. `notes`: what was done to their colours; `transfer` is the stream's, H.273's number, for
    frames do not tell theirs in every PyAV."""

    def __init__(self) -> None:
        self.transfer = 0
        self.notes: set[str] = set()
        self._graphs: dict[tuple, Any] = {}

    def __call__(self, frame: Any) -> np.ndarray:
        """A frame as (H, W, 3) uint8, not turned, pixels as the file has them; transparent parts over black."""
        transfer = int(getattr(frame, "color_trc", 0) or 0)
        transfer = transfer if transfer in TRANSFERS else self.transfer
        if transfer in TRANSFERS and matrix_of(frame):
            self.notes.add(f"HDR ({TRANSFERS[transfer]}) was converted to SDR; values brighter than reference white are "
                           "compressed")
            return tone_mapped(self._scaled(frame, "gbrp16le", "rgb48le"), transfer)
        if frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components):
            picture = self._scaled(frame, "gbrap", "rgba")
            if picture[..., 3].min() == 255:  # as of every GIF, whose decoder knows no other format
                return picture[..., :3]
            self.notes.add("the video has transparent parts; they are shown on black")
            return over_black(picture)
        return self._scaled(frame, "gbrp", "rgb24")

    def _scaled(self, frame: Any, planar: str, to: str) -> np.ndarray:
        matrix, full = matrix_of(frame), full_range(frame)
        key = (frame.format.name, frame.width, frame.height, matrix, full, to)
        if key not in self._graphs:
            if len(self._graphs) > 8:  # a file whose frames change all the time
                self._graphs.clear()
            self._graphs[key] = _graph(frame, matrix, full, planar, to)
        graph = self._graphs[key]
        graph.push(frame)
        return pixels(graph.pull())


def _graph(frame: Any, matrix: str | None, full: bool, planar: str, to: str) -> Any:
    """The exact conversion, within rounding. By way of planes, for which FFmpeg has it in vector code: a fifth of the time."""
    options = f"out_range=full:{EXACT}"
    if matrix is not None:
        options += f":in_color_matrix={matrix}"
    if not frame.format.is_rgb:
        options += f":in_range={'full' if full else 'limited'}"
    # The scaler refuses primaries and transfers that it does not know; it has nothing to do with them here.
    return chain(frame, [("setparams", "color_primaries=bt709:color_trc=bt709"), ("scale", options),
                         ("format", f"pix_fmts={planar}"), ("scale", None), ("format", f"pix_fmts={to}")])


def chain(frame: Any, filters: list[tuple[str, str | None]]) -> Any:
    """FFmpeg's filters one after another, for frames of the size and format of this one."""
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name,
                              time_base=frame.time_base or Fraction(1, 1000)),
             *(graph.add(*given) for given in filters), graph.add("buffersink")]
    for one, other in zip(nodes, nodes[1:], strict=False):
        one.link_to(other)
    graph.configure()
    return graph


def pixels(frame: Any) -> np.ndarray:
    """A packed frame of 8 or 16 bit as (H, W, channels). It lies in FFmpeg's own memory, which it keeps, and is not copied."""
    kind = np.dtype("<u2" if "48" in frame.format.name else np.uint8)
    channels = len(frame.format.components)
    plane = frame.planes[0]
    rows = np.frombuffer(plane, np.uint8, frame.height * plane.line_size).reshape(frame.height, plane.line_size)
    return rows[:, :frame.width * channels * kind.itemsize].view(kind).reshape(frame.height, frame.width, channels)


def over_black(picture: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8, colour not multiplied by opacity -> (H, W, 3) uint8. Colours hidden under transparency are not visible."""
    return ((picture[..., :3].astype(np.uint16) * picture[..., 3:] + 127) // 255).astype(np.uint8)


@cache
def _light(transfer: int) -> np.ndarray:
    """Linear light of each of 65536 signal values: of PQ in parts of reference white, of HLG of the scene in [0, 1]."""
    signal = (np.arange(65536) / SCALER_WHITE).clip(max=1.0)
    if transfer == PQ:  # BT.2100, table 4
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = signal ** (1 / m2)
        return (10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) / REFERENCE_WHITE).astype(np.float32)
    a = 0.17883277  # BT.2100, table 5
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


TOP, STEPS = 64.0, 65535  # of light that the table below tells apart, and its size


@cache
def _shown() -> np.ndarray:
    """sRGB bytes of light in parts of reference white, by the square root of light / TOP."""
    light = np.linspace(0.0, 1.0, STEPS + 1) ** 2 * TOP
    room = 1 - KNEE
    light = np.where(light > KNEE, KNEE + room * (1 - np.exp(-np.maximum(light - KNEE, 0) / room)), light)
    signal = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return (signal * 255).round().clip(0, 255).astype(np.uint8)


def tone_mapped(picture: np.ndarray, transfer: int) -> np.ndarray:
    """An HDR picture converted to SDR.

    Up to 0.8 of reference white (BT.2408) light is unchanged; above, an exponential shoulder compresses it below 1.

    Args:
        picture: (H, W, 3) uint16, BT.2020 primaries.
        transfer: PQ or HLG.

    Returns:
        (H, W, 3) uint8, sRGB.
    """
    light = _light(transfer)[picture]
    if transfer == HLG:  # scene light -> light of a screen (BT.2100's OOTF, gamma 1.2)
        luma = light @ WIDE_LUMA
        light = light * (PEAK / REFERENCE_WHITE * np.maximum(luma, 1e-6) ** np.float32(0.2))[..., None]
    light = (light.reshape(-1, 3) @ WIDE_TO_SRGB.T).reshape(picture.shape).clip(0, TOP)
    return _shown()[(np.sqrt(light / np.float32(TOP)) * STEPS + 0.5).astype(np.uint16)]
