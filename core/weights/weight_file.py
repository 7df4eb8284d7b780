"""A safetensors file, opened once: its header, its tensors, and the errors that name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from ..names import printable
from .framepainter import FileKind, Shapes, file_kind
from .safetensors_header import BrokenFile, Header, read_header

SHOWN = 4  # problems in a message
WHERE = {
    "framepainter unet": "the authors' FramePainter UNet (unet_diffusion_pytorch_model.safetensors, Hugging Face "
                         "repository Yabo/FramePainter)",
    "encoder": "the authors' control encoder (encoder_diffusion_pytorch_model.safetensors, Hugging Face repository "
               "Yabo/FramePainter)",
    "svd checkpoint": "a Stable Video Diffusion checkpoint (svd.safetensors, svd_xt.safetensors or "
                      "svd_xt_1_1.safetensors, Hugging Face organisation stabilityai)",
}
_FOUND = {"framepainter unet": "a FramePainter UNet", "svd unet": "a plain SVD UNet without matching attention",
          "encoder": "a FramePainter control encoder", "single file": "a FramePainter single-file checkpoint",
          "svd checkpoint": "a Stable Video Diffusion checkpoint", "sdxl checkpoint": "an SDXL checkpoint",
          "sd checkpoint": "a Stable Diffusion image checkpoint"}


class WeightsError(ValueError):
    """A weight file cannot be used. The text names the file, what was expected, what was found and the remedy."""


@dataclass(frozen=True)
class WeightFile:
    """A whole safetensors file; `open` makes one.

    header: names, shapes and metadata.  kind: what FramePainter's file kinds say it is.
    remedy: what to do if it is broken, a sentence.
    """

    path: Path
    header: Header
    kind: FileKind
    remedy: str = field(default="Download it again.", compare=False)

    @classmethod
    def open(cls, path: Path, remedy: str = "Download it again.") -> WeightFile:
        """Read a file's header.

        Raises:
            WeightsError: there is no such file, or it is broken.
        """
        try:
            header = read_header(path)
        except FileNotFoundError:
            raise WeightsError(f"'{printable(path)}' does not exist. Put the file there, or refresh the node and choose another."
                               ) from None
        except BrokenFile as error:
            raise WeightsError(f"'{printable(path.name)}' is not usable: {error}. {remedy}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WeightsError(f"'{printable(path)}' cannot be read: {reason}. Check that it is a file that may be read.") from None
        return cls(path, header, file_kind({name: entry.shape for name, entry in header.tensors.items()}), remedy)

    @property
    def name(self) -> str:
        """The file's name without its folder, for messages."""
        return printable(self.path.name)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor -> shape."""
        return {name: entry.shape for name, entry in self.header.tensors.items()}

    def under(self, prefix: str) -> dict[str, str]:
        """new name -> file's name for everything under a prefix, the prefix taken off."""
        return {name[len(prefix):]: name for name in self.header.tensors if name.startswith(prefix)}

    def shapes_of(self, names: Mapping[str, str]) -> Shapes:
        """New name -> shape, of tensors by new name -> file's name."""
        return {new: self.shapes[old] for new, old in names.items()}

    def read(self, names: Mapping[str, str] | None = None) -> dict[str, Tensor]:
        """Read tensors, straight from the mapped file.

        Args:
            names: new name -> name in the file; None reads all under their own names.

        Raises:
            WeightsError: the file has changed since it was opened, or holds a type of number that is not known.
        """
        names = {name: name for name in self.header.tensors} if names is None else names
        try:
            with safe_open(str(self.path), framework="pt") as file:
                return {new: file.get_tensor(old) for new, old in names.items()}
        except Exception as error:  # of safetensors, the disk, and names of types that torch lacks
            raise WeightsError(f"'{self.name}' is not usable: its tensors cannot be read ({type(error).__name__}: {error}). "
                               f"{self.remedy}") from None

    # ---- refusals ----

    def wrong_kind(self, expected: str) -> WeightsError:
        """The error for a file of another kind.

        Args:
            expected: a key of WHERE.
        """
        first = printable(next(iter(self.header.tensors), "-"))
        found = _FOUND.get(self.kind, f"{len(self.header.tensors)} other tensors, the first '{first}'")
        return WeightsError(f"'{self.name}' holds {found}; expected {WHERE[expected]}, or a checkpoint saved by Save FramePainter "
                            "Checkpoint.")

    def differs(self, what: str, problems: list[str]) -> WeightsError:
        """The error for a file whose tensors are not those of `what`."""
        return WeightsError(f"'{self.name}' is not a complete {what}: {briefly(problems)}. Download it again, or choose the file "
                            "that belongs to this model.")


def briefly(problems: list[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return printable("; ".join(problems[:SHOWN]) + more)
