"""GET /framepainter/picture: a picture file as Load Image gives it, for the editors.

The host's /view shows files as they are stored, browsers turn some of them by their EXIF orientation, Load Image turns others:
what is drawn over a picture must lie where the network sees it. Read-only; files under input, output and temp alone.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

import folder_paths
import torch
from PIL import Image

from .. import report
from ..outputs import inside

PATH = "/framepainter/picture"
ENDINGS = {".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".jpg", ".jpeg"}
JPEG = {".jpg", ".jpeg"}
ORIENTATION = 0x112  # EXIF's tag


def picture(filename: str, subfolder: str = "", kind: str = "input") -> tuple[bytes, str]:
    """The first picture that Load Image makes of a file, and its content type: PNG, or the file itself if it is a plain JPEG.

    Args:
        filename, subfolder, kind: as /view has them; kind is input, output or temp.

    Raises:
        FileNotFoundError: there is no such picture under that folder.
        Exception: what Pillow and the host raise on files that are no pictures.
    """
    import nodes  # the host's own, which is whole only when all packs are loaded

    base = folder_paths.get_directory_by_type(kind)
    name = f"{subfolder}/{filename}" if subfolder else filename
    path = None if base is None else inside(Path(base), name)
    if path is None or path.suffix.lower() not in ENDINGS or not path.is_file():
        raise FileNotFoundError(name)
    if path.suffix.lower() in JPEG:  # much smaller, and every decoder makes nearly the same of it
        with Image.open(path) as file:
            if file.format == "JPEG" and file.mode in ("RGB", "L") and file.getexif().get(ORIENTATION, 1) == 1:
                return path.read_bytes(), "image/jpeg"
    with torch.inference_mode():
        images = nodes.LoadImage().load_image(f"{name} [{kind}]")[0]
        pixels = (images[0].float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue(), "image/png"


def register() -> None:
    """Let the host's server answer the page; nothing happens without a server."""
    host = report.server()
    if host is None:
        return
    from aiohttp import web  # the server's own; absent where nodes run without one

    @host.routes.get(PATH)
    async def answer(request: web.Request) -> web.Response:
        asked = request.rel_url.query
        try:
            found, kind = await asyncio.to_thread(picture, asked.get("filename", ""), asked.get("subfolder", ""),
                                            asked.get("type", "output"))
        except FileNotFoundError:
            return web.Response(status=404)
        except Exception as error:  # Pillow's decoders raise almost anything on damaged files
            return web.Response(status=415, text=f"The picture cannot be read ({type(error).__name__}).")
        return web.Response(body=found, content_type=kind, headers={"Cache-Control": "no-cache"})
