"""Save Video (tagged): the host's own VIDEO objects -> files under the output folder, with the workflow in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import InputImpl

from ...core.images import as_pictures
from ...core.video import writing
from ...core.video.reading import Sound
from .. import report
from ..outputs import new_file, workflow_texts


def save(video: Any, prefix: str, quality: int, prompt: Any, extra: dict[str, Any] | None) -> Path:
    """Write a video under the output folder. One that comes straight from a file is copied by the host, in its own colours.

    Args:
        prefix: see `new_file`.  quality: x264's constant rate factor.
        prompt, extra: the workflow as the host hands it to nodes that save.

    Raises:
        ValueError, WriteError: see `new_file` and `write`; the video holds no frames.
    """
    about = workflow_texts(prompt, extra)
    if isinstance(video, InputImpl.VideoFromFile):
        source = video.get_stream_source()
        path = new_file(prefix, (Path(source).suffix if isinstance(source, str) else "") or ".mp4")
        video.save_to(str(path), metadata=about or None)
        return path
    parts = video.get_components()
    frames, lost = as_pictures(parts.images, "video")
    if lost:
        report.warn(f"'video' has {lost} values that are not finite (NaN or infinite); they count as 0. The node that made it has "
                    "failed there.")
    sound = None if parts.audio is None else Sound(parts.audio["waveform"][0], int(parts.audio["sample_rate"]))
    path = new_file(prefix, ".mp4")
    notes = writing.write(path, frames, float(parts.frame_rate), sound, about, quality,
                          report.Steps(len(frames)).reach)
    for note in notes:
        report.warn(f"{path.name}: {note}.")
    return path
