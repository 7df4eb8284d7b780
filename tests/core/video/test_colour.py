"""Colours of videos as players show them: encoded by the standards' own formulas, and read back."""

from __future__ import annotations

import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

MATRICES = {"bt709": (1, 0.2126, 0.0722), "bt601": (6, 0.299, 0.114), "pal": (5, 0.299, 0.114), "smpte240m": (7, 0.212, 0.087),
            "fcc": (4, 0.30, 0.11), "bt2020": (9, 0.2627, 0.0593)}
COLOURS = [(200, 60, 40), (40, 180, 60), (60, 60, 220), (128, 128, 128), (255, 255, 255), (0, 0, 0), (250, 240, 20)]


@pytest.fixture
def colour(pack):
    return pack("core.video.colour")


def encoded(rgb, kr: float, kb: float, full: bool, bits: int = 8) -> list[int]:
    """Y, Cb, Cr by H.273's equations."""
    r, g, b = (c / 255 for c in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    unit = 2 ** (bits - 8)
    if full:
        top = 2**bits - 1
        values = (y * top, 2 ** (bits - 1) + cb * top, 2 ** (bits - 1) + cr * top)
    else:
        values = (unit * (16 + 219 * y), unit * (128 + 224 * cb), unit * (128 + 224 * cr))
    return [int(round(min(2**bits - 1, max(0, v)))) for v in values]


def frame_of(values, form: str = "yuv420p", size=(96, 64), space: int = 2, full: bool = False, transfer: int = 2):
    frame = av.VideoFrame(*size, form)
    kind = np.uint16 if "10" in form or "12" in form else np.uint8
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
    frame.colorspace, frame.color_range = space, 2 if full else 1
    if hasattr(frame, "color_trc"):
        frame.color_trc = transfer
    return frame


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("form, bits", [("yuv420p", 8), ("yuv422p", 8), ("yuv444p", 8), ("yuv420p10le", 10), ("yuv444p12le", 12)])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_bt709_and_the_others(colour, matrix, form, bits, full):
    space, kr, kb = MATRICES[matrix]
    for rgb in COLOURS:
        found = colour.ToRGB()(frame_of(encoded(rgb, kr, kb, full, bits), form, space=space, full=full))
        assert np.abs(found.astype(int) - rgb).max() <= 2, rgb  # rounding of eight-bit Y, Cb and Cr alone may take 2


@pytest.mark.parametrize("size, matrix", [((720, 576), "bt601"), ((640, 360), "bt601"), ((1280, 720), "bt709"),
                                          ((1280, 544), "bt709"), ((608, 1080), "bt709")])
def test_an_untagged_file_is_taken_as_players_do(colour, size, matrix):
    _, kr, kb = MATRICES[matrix]
    found = colour.ToRGB()(frame_of(encoded((200, 60, 40), kr, kb, False), size=size))
    assert np.abs(found.astype(int) - (200, 60, 40)).max() <= 2


@pytest.mark.parametrize("form", ["rgb24", "bgr24", "gbrp", "rgba"])
def test_rgb_stays_as_it_is(colour, form):
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=form)
    assert np.array_equal(colour.ToRGB()(frame), picture)


def test_grey(colour):
    frame = frame_of([100], "gray", full=True)
    assert np.abs(colour.ToRGB()(frame).astype(int) - 100).max() <= 1


def hdr_file(path, transfer: str, level: int):
    """Ten-bit BT.2020 of one luma level."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        stream.options = {"crf": "1", "x264-params": f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"}
        for i in range(4):
            frame = frame_of((level, 512, 512), "yuv420p10le")
            frame.pts, frame.time_base = i, Fraction(1, 8)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("transfer, white", [("smpte2084", 0.58), ("arib-std-b67", 0.75)])  # BT.2408: of 203 cd/m2
def test_hdr_white_is_white_and_the_report_says_so(pack, tmp_path, transfer, white):
    reading = pack("core.video.reading")
    levels = [reading.read(hdr_file(tmp_path / f"{share}.mp4", transfer, round(64 + 876 * white * share)))
              for share in (0.0, 0.5, 0.8, 1.0, 1.2)]
    means = [float(v.frames.mean() * 255) for v in levels]
    assert means == sorted(means) and means[0] < 1 and 235 < means[3] < 255  # steady, black is black, white nearly at the top
    assert means[4] > means[3] + 3  # and brighter light can still be told from it
    assert all("HDR" in " ".join(v.notes) for v in levels)


@pytest.fixture(scope="module")
def bench():
    """bench/colours.py, which measures the table of docs/colours.md."""
    path = Path(__file__).parents[3] / "bench" / "colours.py"
    spec = importlib.util.spec_from_file_location("framepainter_bench_colours", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_colours_holds(pack, bench, tmp_path):
    """Every eighth kind measured again: in within one level of FFmpeg's own conversion, the whole way within two."""
    stated = json.loads(bench.RESULTS.read_text(encoding="utf-8"))
    assert "\n".join(bench.lines(stated)) in bench.PAGE.read_text(encoding="utf-8")
    for case in bench.cases()[::8]:
        found = bench.measure(pack, case, tmp_path, hosts=False)
        assert found["in"] <= 1 and found["out"] <= 2 and found["truth"] <= 2, (case, found)
    assert all(row["in"] <= 1 and row["out"] <= 2 for row in stated["ours"].values())
