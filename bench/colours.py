"""The colours of videos of every tag, range and depth, as they are read and as they are saved again.

    <ComfyUI's python> bench/colours.py --host COMFYUI [--write]

For each kind a video of even patches is made, whose colours are known. Measured, in levels of 255:
in: Read Video against FFmpeg's own conversion in 16 bit, any pixel.  truth: Read Video against the patches' colours: how well a
picture that was edited elsewhere matches its frame.  out: file -> Read Video -> Create Video -> Save Video (tagged), as a player
shows the saved file against the first one; host's: the same with ComfyUI's own Save Video. Patches are compared by their medians.
--write puts the table into docs/colours.md, beside the numbers of hosts measured before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack as tools_pack  # noqa: E402
import pages  # noqa: E402

RESULTS = ROOT / "bench" / "colours.json"
PAGE, BEGIN = ROOT / "docs" / "colours.md", "<!-- table: bench/colours.py -->"
PATCH, RIM = 40, 12  # pixels of a patch, and those at its edges that are not compared: colours run over them
SD, HD = (480, 640), (720, 1280)
LIMITED, FULL = 1, 2
WHITE = 255 << 8  # in 16 bit, as the scaler makes it of 8, 10 and 12
# Names of the tags: H.273's number of the matrix, the scaler's name of it.
TAGS = {"BT.709": (1, "bt709"), "BT.601 (NTSC)": (6, "smpte170m"), "BT.601 (PAL)": (5, "bt470"), "FCC": (4, "fcc"),
        "SMPTE 240M": (7, "smpte240m"), "BT.2020": (9, "bt2020"), "none, smaller": (2, "smpte170m"), "none, HD": (2, "bt709"),
        "RGB": (0, None), "grey": (2, None)}
GRAINS = "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp:sws_dither=none"


class Case(NamedTuple):
    """A kind of video: its tag, range, pixel format, (height, width)."""

    tag: str
    range: int
    form: str
    size: tuple[int, int]

    @property
    def depth(self) -> int:
        return 12 if "12" in self.form else 10 if "10" in self.form else 8

    @property
    def row(self) -> tuple[str, str, str, str]:
        named = {"yuv420p": "4:2:0", "yuv422p": "4:2:2", "yuv444p": "4:4:4", "bgr0": "4:4:4", "gray": "4:0:0"}
        planes = next(text for start, text in named.items() if self.form.startswith(start))
        height, width = self.size
        return self.tag, "full" if self.range == FULL else "limited", f"{self.depth} bit {planes}", f"{width} x {height}"


def cases() -> list[Case]:
    out = []
    for tag in TAGS:
        if tag in ("RGB", "grey"):
            continue
        sizes = {"none, smaller": [SD], "none, HD": [HD]}.get(tag, [SD, HD])
        out += [Case(tag, given, "yuv420p", size) for size in sizes for given in (LIMITED, FULL)]
    out += [Case(tag, LIMITED, form, SD) for tag in ("BT.709", "BT.2020") for form in ("yuv420p10le", "yuv422p", "yuv444p12le")]
    return [*out, Case("RGB", FULL, "bgr0", SD), Case("grey", FULL, "gray", SD), Case("grey", LIMITED, "gray", SD)]


# ---- videos and what players make of them ----------------------------------------------------------------------------


def patches(case: Case) -> np.ndarray:
    """One picture of even colours, (H, W, 3) uint8."""
    rows, columns = (side // PATCH for side in case.size)
    colours = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    colours.reshape(-1, 3)[:8] = [[255 * (i >> k & 1) for k in range(3)] for i in range(8)]
    if case.tag == "grey":
        colours[...] = colours[..., :1]
    return colours.repeat(PATCH, 0).repeat(PATCH, 1)


def middles(picture: np.ndarray) -> np.ndarray:
    """Median colours of the patches without their rims, so that the encoder's noise does not count."""
    rows, columns = (side // PATCH for side in picture.shape[:2])
    split = np.asarray(picture, np.float64).reshape(rows, PATCH, columns, PATCH, 3)
    return np.median(split[:, RIM:-RIM, :, RIM:-RIM], (1, 3))


def through(frame: Any, options: str, form: str) -> Any:
    """A frame through FFmpeg's scaler."""
    import av.filter

    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 1000)),
             graph.add("setparams", "color_primaries=bt709:color_trc=bt709"), graph.add("scale", f"{options}:{GRAINS}"),
             graph.add("format", f"pix_fmts={form}"), graph.add("buffersink")]
    for one, other in zip(nodes, nodes[1:], strict=False):
        one.link_to(other)
    graph.configure()
    graph.push(frame)
    return graph.pull()


def write(path: Path, case: Case, picture: np.ndarray) -> Path:
    """A video of two equal frames, without loss, with the tag, or none, in frames and file."""
    import av

    number, matrix = TAGS[case.tag]
    words = {LIMITED: "limited", FULL: "full"}[case.range]
    options = "in_range=full:" + (f"out_range={words}" + (f":out_color_matrix={matrix}" if matrix else "") if case.tag != "RGB"
                                  else "out_range=full")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=8)
        stream.height, stream.width = case.size
        stream.pix_fmt = case.form
        codec = stream.codec_context
        codec.colorspace, codec.color_range = number, case.range
        for i in range(2):
            frame = through(av.VideoFrame.from_ndarray(picture, format="rgb24"), options, case.form)
            frame.pts, frame.time_base = i, Fraction(1, 8)
            frame.colorspace, frame.color_range = number, case.range
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def players(path: Path) -> np.ndarray:
    """A file's first frame as FFmpeg shows it by its tags, else by its size: converted in 16 bit, (H, W, 3) in levels of 255."""
    import av

    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    options = "out_range=full"
    if not frame.format.is_rgb:
        full = int(frame.color_range) == FULL
        options += f":in_range={'full' if full else 'limited'}"
        if len(frame.format.components) > 1:
            guess = "bt709" if frame.width >= 1280 or frame.height > 576 else "smpte170m"
            matrix = next((name for number, name in TAGS.values() if name and number == int(frame.colorspace) != 2), guess)
            options += f":in_color_matrix={matrix}"
    planes = through(frame, options, "gbrp16le")  # the scaler's packed 16 bit wrap where colours are cut off
    return np.stack([np.frombuffer(planes.planes[i], np.uint16).reshape(planes.height, -1)[:, :planes.width]
                     for i in (2, 0, 1)], -1).clip(max=WHITE) / (WHITE / 255)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(load: Any, case: Case, folder: Path, hosts: bool = True) -> dict[str, float]:
    """Differences in levels of 255; see the head.

    Args:
        load: imports a module of the pack.  hosts: measure the host's own Save Video as well.
    """
    from comfy_api.latest import InputImpl, Types

    picture = patches(case)
    first = write(folder / "first.mkv", case, picture)
    shown = players(first)
    frames, fps, *_ = load("nodes.video").ReadVideo.execute(InputImpl.VideoFromFile(str(first)), -1.0, 0.0, -1.0, True).result
    read = frames[0].numpy() * 255
    load("core.video.writing").write(folder / "out.mp4", frames, fps)
    out = {"in": float(np.abs(read - shown).max()), "truth": float(np.abs(middles(read) - middles(picture)).max()),
           "out": apart(folder / "out.mp4", shown)}
    if hosts:
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(fps)))
        video.save_to(str(folder / "hosts.mp4"))
        out["host's"] = apart(folder / "hosts.mp4", shown)
    return out


def apart(path: Path, shown: np.ndarray) -> float:
    """How far a file's patches are from those of a picture, both in the whole levels of a screen."""
    return float(np.abs(middles(players(path).round()) - middles(shown.round())).max())


def lines(results: dict[str, Any]) -> list[str]:
    """A Markdown table; the host's column once for each host that was measured."""
    hosts = sorted(results["hosts"])
    out = ["| tag | range | depth | size | in | truth | out | " + " | ".join(f"Save Video of {h}" for h in hosts) + " |",
           "| --- | --- | --- | --- " + "| ---: " * (3 + len(hosts)) + "|"]
    for case in cases():
        key = ", ".join(case.row)
        latest = results["ours"][key]
        numbers = [latest["in"], latest["truth"], latest["out"], *(results["hosts"][h].get(key, float("nan")) for h in hosts)]
        out.append(f"| {' | '.join(case.row)} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table in {PAGE.name}")
    args = parser.parse_args()
    load = tools_pack.open_pack(args.host, cpu=True)
    from comfyui_version import __version__

    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"ours": {}, "hosts": {}}
    with tempfile.TemporaryDirectory() as folder:
        found = {", ".join(case.row): measure(load, case, Path(folder)) for case in cases()}
    results["hosts"][__version__] = {key: row.pop("host's") for key, row in found.items()}
    results["ours"] = found
    text = "\n".join(lines(results))
    print(text)
    if args.write:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        pages.write_table(PAGE, BEGIN, text)


if __name__ == "__main__":
    main()
