"""GET /framepainter/frame and /framepainter/strip: frames of a video file for the editors, before anything runs.

They are decoded as Read Video decodes them, so that what is drawn over a frame lies where the network sees it. Read-only; the
input, output and temp folders and the pack's examples alone. One file stays open for a while, so that a strip and the frames
chosen from it start one decoder.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ...core.video.source import VideoError, VideoFile
from ...core.video.stills import Choice, Span, span, still, thumbnails
from .. import report
from . import files

FRAME, STRIP = "/framepainter/frame", "/framepainter/strip"
IDLE = 20.0     # seconds for which a file stays open without being asked for
PATIENCE = 20.0  # seconds that one answer may take
MANY = 64       # thumbnails of a strip
LARGE = 400     # pixels of a thumbnail's longer side

T = TypeVar("T")


class _Opened:
    """The file that was asked for last, with its decoder."""

    def __init__(self) -> None:
        self._lock, self._file, self._stamp, self._closing = threading.Lock(), None, None, None

    def use(self, path: Path, do: Callable[[VideoFile, Callable[[], None]], T]) -> T:
        """Ask a file for something, one request at a time; its decoder is ended `IDLE` seconds after the last one."""
        late = time.monotonic() + PATIENCE

        def check() -> None:
            if time.monotonic() > late:
                raise VideoError(f"takes more than {PATIENCE:.0f} s to decode")

        if not self._lock.acquire(timeout=PATIENCE):
            raise VideoError("waits for another video that is being decoded")
        try:
            state = path.stat()
            stamp = path, state.st_mtime_ns, state.st_size
            if stamp != self._stamp:
                self.close()
                self._file, self._stamp = VideoFile(path, path.name), stamp
            return do(self._file, check)
        finally:
            if self._closing is not None:
                self._closing.cancel()
            self._closing = threading.Timer(IDLE, self._idle)
            self._closing.daemon = True
            self._closing.start()
            self._lock.release()

    def _idle(self) -> None:
        with self._lock:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._stamp = None


_OPENED = _Opened()


def choice_of(asked: Mapping[str, str]) -> Choice:
    """Read Video's settings from a request. Raises ValueError."""
    return Choice(float(asked.get("fps", -1)), float(asked.get("start", 0)), float(asked.get("end", -1)),
                  asked.get("even_size") == "true", int(asked.get("longer_side", 0)))


def frame(asked: Mapping[str, str]) -> bytes:
    """BMP of one frame: without loss, and made in a fortieth of the time that PNG takes.

    Args:
        asked: `file` as Load Video or Example names it; `index` within the span and `after`, seconds to leave out before it; `by`,
            read or components; Read Video's settings.

    Raises:
        FileNotFoundError: there is no such file in the folders.
        ValueError: the file, or this frame, cannot be shown; the text says why.
    """
    path, choice = files.find(asked.get("file", "")), choice_of(asked)

    def do(file: VideoFile, check: Callable[[], None]) -> np.ndarray:
        found = span(file, choice, check)
        if asked.get("by") == "components":
            _as_stored(path, found)
        return still(file, choice, found.at(int(asked.get("index", 0)), float(asked.get("after", 0))), check).numpy()

    out = BytesIO()
    Image.fromarray(_named(path, do)).save(out, "BMP")
    return out.getvalue()


def strip(asked: Mapping[str, str]) -> dict[str, Any]:
    """Small copies of frames evenly over the span, as one JPEG: what the page draws a film strip from.

    Args:
        asked: as for `frame`; `count` of frames, and `side`, pixels of their longer side.

    Returns:
        count, fps, width, height of the span's frames; indices of those that are shown; sheet, a data address, with all of them
        beside each other; thumb, width and height of one.
    """
    path, choice = files.find(asked.get("file", "")), choice_of(asked)
    many, side = min(MANY, max(1, int(asked.get("count", 12)))), min(LARGE, max(16, int(asked.get("side", 96))))

    def do(file: VideoFile, check: Callable[[], None]) -> tuple[Span, list[int], dict[int, Any]]:
        found = span(file, choice, check)
        last = len(found.numbers) - 1
        indices = sorted({round(i * last / max(1, many - 1)) for i in range(many)})
        return found, indices, thumbnails(file, [found.numbers[i] for i in indices], side, check)

    found, indices, pictures = _named(path, do)
    shown = [i for i in indices if found.numbers[i] in pictures]
    sheet = np.concatenate([pictures[found.numbers[i]].numpy() for i in shown], 1) if shown else np.zeros((1, 1, 3), np.uint8)
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(out, "JPEG", quality=80)
    return {"count": len(found.numbers), "fps": found.fps, "width": found.width, "height": found.height, "indices": shown,
            "thumb": [sheet.shape[1] // max(1, len(shown)), sheet.shape[0]],
            "sheet": f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"}


def _named(path: Path, do: Callable[[VideoFile, Callable[[], None]], T]) -> T:
    try:
        return _OPENED.use(path, do)
    except ValueError as error:  # VideoError too
        raise ValueError(f"'{path.name}' {error}.") from None


def _as_stored(path: Path, found: Span) -> None:
    """The host's own reader does not turn frames and does not make pixels square: then it gives another picture than this one."""
    from comfy_api.latest import InputImpl

    size = None
    with suppress(Exception):  # whatever it cannot read is shown as it is
        size = InputImpl.VideoFromFile(str(path)).get_dimensions()
    if size not in (None, (found.width, found.height)):
        raise ValueError(f"is shown at {found.width} x {found.height}, but Get Video Components gives its frames as they are "
                         f"stored, {size[0]} x {size[1]}; use Read Video in its place")


def register() -> None:
    """Let the host's server answer the page; nothing happens without a server."""
    host = report.server()
    if host is None:
        return
    from aiohttp import web  # the server's own; absent where nodes run without one

    async def answer(request: web.Request, make: Callable, reply: Callable[[Any], web.Response]) -> web.Response:
        try:
            made = reply(await asyncio.to_thread(make, request.rel_url.query))
        except FileNotFoundError as error:
            return web.Response(status=404, text=str(error))
        except (ValueError, OverflowError, OSError) as error:
            return web.Response(status=415, text=str(error))
        made.headers["Cache-Control"] = "no-cache"
        return made

    @host.routes.get(FRAME)
    async def one(request: web.Request) -> web.Response:
        return await answer(request, frame, lambda bmp: web.Response(body=bmp, content_type="image/bmp"))

    @host.routes.get(STRIP)
    async def several(request: web.Request) -> web.Response:
        return await answer(request, strip, web.json_response)
