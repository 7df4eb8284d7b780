"""The stored inversion of a clip: every latent on the way, and what made it. One safetensors file, without attention.

The network's features at every step can be computed again from the latents, so this replaces the published store of attention: 52
MB instead of 81 GB for 14 frames of 1024 x 576 and 25 steps.

Legend: N steps, T frames, h w latent pixels, D width of the image embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import atomic
from ..edm import scale_input
from ..parsing import json_object, json_value
from .schedule import inversion_levels

KIND, FORMAT = "framepainter trajectory", "1"
SHOWN = 12  # characters of a hash in a message


class TrajectoryError(ValueError):
    """A trajectory cannot be used: another model, size or schedule, or a damaged file."""


@dataclass(frozen=True)
class SourceConditioning:
    """What the source network is conditioned on, in the host's terms.

    embedding: (1, tokens, D) image embedding.  image_latents: (1 or T, 4, h, w), not multiplied by the scaling factor.
    numbers: fps (the network's number plus one), motion_bucket_id, augmentation_level.
    """

    embedding: Tensor
    image_latents: Tensor
    numbers: dict[str, float]

    def digest(self) -> str:
        return digest([self.embedding, self.image_latents, *(f"{k}={v!r}" for k, v in sorted(self.numbers.items()))])


@dataclass(frozen=True)
class Trajectory:
    """States of an inversion and what is needed to run its network again.

    states: (N + 1, T, 4, h, w) fp32 on the CPU, model space (latents * 0.18215); entry i is where inversion step i starts,
        entry N is what was reached. A partial one has fewer.
    sigmas: the sampling's N + 1 levels, descending.
    model: digest of the network.
    """

    states: Tensor
    sigmas: tuple[float, ...]
    conditioning: SourceConditioning
    model: str

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def reached(self) -> int:
        """Steps that are done; less than `steps` in a partial trajectory."""
        return len(self.states) - 1

    @property
    def levels(self) -> list[float]:
        """Ascending levels of the inversion; state i lies at level i."""
        return inversion_levels(self.sigmas)

    @property
    def frames(self) -> int:
        return self.states.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in latent pixels."""
        return tuple(self.states.shape[-2:])

    @property
    def inverted(self) -> Tensor:
        """The inverted noise (T, 4, h, w), ideally standard normal: the last state / sqrt(sigma_0^2 + 1)."""
        return scale_input(self.states[-1], self.sigmas[0])

    def digest(self) -> str:
        """Digest of network, conditioning, levels and all latents; equal only for the same inversion."""
        return digest([self.model, self.conditioning.digest(), self.schedule(), self.states])

    def schedule(self) -> str:
        return digest([repr(tuple(float(s) for s in self.sigmas))])


def digest(parts: Iterable[Tensor | str]) -> str:
    """SHA-256 over texts and tensors (shape, type and bytes)."""
    out = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            out.update(part.encode() + b"\0")
        else:
            data = part.detach().cpu().contiguous()
            out.update(f"{data.dtype}{tuple(data.shape)}".encode() + b"\0")
            out.update(data.reshape(-1).view(torch.uint8).numpy())
    return out.hexdigest()


def identity(model: str, conditioning: SourceConditioning, sigmas: tuple[float, ...], latents: Tensor) -> str:
    """One digest of everything that an inversion starts from: if it is equal, a partial inversion may be resumed."""
    return digest([model, conditioning.digest(), repr(sigmas), latents.float()])


def describe(sigmas: Iterable[float]) -> str:
    """A schedule in a few words, for messages."""
    sigmas = list(sigmas)
    return f"{len(sigmas) - 1} steps from sigma {sigmas[0]:.6g} to {sigmas[-1]:.6g}"


# ---- files -----------------------------------------------------------------------------------------------------------


def save(path: Path, trajectory: Trajectory, extra: dict[str, str] | None = None) -> Path:
    """Write a trajectory; the file appears only when it is complete.

    Args:
        extra: further metadata, text only.

    Raises:
        WriteError: it cannot be written (full disk, read-only folder); nothing is left behind.
    """
    source = trajectory.conditioning
    tensors = {"states": trajectory.states.contiguous(), "embedding": source.embedding.detach().cpu().contiguous().clone(),
               "image_latents": source.image_latents.detach().cpu().contiguous().clone()}
    metadata = {
        **(extra or {}), "kind": KIND, "format": FORMAT, "model": trajectory.model, "conditioning": source.digest(),
        "schedule": trajectory.schedule(), "states": digest([trajectory.states]),
        "sigmas": json.dumps(list(trajectory.sigmas)), "numbers": json.dumps(source.numbers),
        "frames": str(trajectory.frames), "height": str(trajectory.size[0]), "width": str(trajectory.size[1]),
        "steps": str(trajectory.steps), "reached": str(trajectory.reached),
    }
    size = f"{tensors['states'].nbytes / 1e6:.0f} MB"
    with atomic.replacing(path, remedy=f"A trajectory takes {size}; make room, or choose a folder that may be written to."
                          ) as partial:
        save_file(tensors, str(partial), metadata=metadata)
    return path


def load(path: Path) -> Trajectory:
    """Read a trajectory, complete or partial, and check that it is what was written.

    Raises:
        FileNotFoundError: no such file.
        TrajectoryError: not a trajectory, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no trajectory '{path}'")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != KIND:
                raise TrajectoryError(f"'{path}' is no trajectory ({metadata.get('kind', 'no kind')} in its header). Choose a "
                                      "file written by Save Trajectory.")
            if metadata.get("format") != FORMAT:
                raise TrajectoryError(f"'{path}' has format {metadata.get('format')}, this version reads {FORMAT}. Update "
                                      "ComfyUI-FramePainter, or invert the clip again.")
            tensors = {name: file.get_tensor(name) for name in ("states", "embedding", "image_latents")}
        conditioning = SourceConditioning(tensors["embedding"], tensors["image_latents"],
                                          {k: float(v) for k, v in json_object(metadata["numbers"]).items()})
        out = Trajectory(tensors["states"], tuple(float(s) for s in json_value(metadata["sigmas"])), conditioning,
                         metadata["model"])
        found = {"states": digest([out.states]), "conditioning": conditioning.digest(), "schedule": out.schedule()}
        sound = out.states.ndim == 5 and 1 <= out.reached <= out.steps and out.levels and bool(out.states.isfinite().all())
    except TrajectoryError:
        raise
    except Exception as error:  # a damaged file raises almost anything, from the library, from torch and from the numbers in it
        raise TrajectoryError(f"'{path}' is damaged and cannot be read ({error}). Copy it again, or invert the clip "
                              "again.") from error
    for part, value in found.items():
        stated = metadata.get(part, "nothing")
        if value != stated:
            raise TrajectoryError(f"'{path}' is damaged: its {part} have the digest {value[:SHOWN]}, the header says "
                                  f"{stated[:SHOWN]}. Copy it again, or invert the clip again.")
    if not sound:
        raise TrajectoryError(f"'{path}' is damaged: its states {list(out.states.shape)} do not fit its {out.steps} steps, or hold "
                              "values that are not finite. Invert the clip again.")
    return out
