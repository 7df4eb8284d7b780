"""A coarse edit as an editing signal: of the editor's pieces, or of a picture that another tool has edited.

Legend: B pictures, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..images import one_of
from .area import changed_area
from .edit_signal import EditSignal
from .pieces import Pieces, place_clip, place_pieces


class CoarseEdit(NamedTuple):
    """An edit of B pictures; batches of one serve all.

    control: (B, H, W, 3) what the control encoder reads.  uncovered: (B, H, W) what nothing covers.  changed: (B, H, W) what the
    edit touched.  known: whether `changed` says so, as there was a source to compare with.
    """

    control: Tensor
    uncovered: Tensor
    changed: Tensor
    known: bool

    def signal(self, index: int) -> EditSignal:
        """The editing signal of one picture."""
        return EditSignal("coarse", one_of(self.control, index), area=one_of(self.changed, index) if self.known else None)


def of_pieces(pieces: Pieces, picture: Tensor, stretch: bool, step: Callable[[], None] = lambda: None) -> CoarseEdit:
    """What the editor has moved, copied and removed.

    Args:
        picture: (B, H, W, 3).  stretch: also if the picture drawn on has another aspect ratio.
        step: called after each piece; what it raises ends the work.

    Raises:
        ValueError: another aspect ratio.
    """
    placed = place_pieces(pieces, picture, stretch, step)
    return CoarseEdit(placed.picture, placed.uncovered[None], placed.changed[None], True)


def of_edited(edited: Tensor, picture: Tensor | None) -> CoarseEdit:
    """A picture that is edited already.

    Args:
        edited: (B, H, W, 3).  picture: (B, H, W, 3) its source, if there is one; without it nothing tells what was touched.
    """
    nothing = torch.zeros(1, *edited.shape[1:3])
    changed = nothing if picture is None else changed_area(edited, picture)
    return CoarseEdit(edited, nothing, changed, picture is not None)


def with_uncovered(edit: CoarseEdit, uncovered: Tensor) -> CoarseEdit:
    """An edit with more left uncovered, and black there: (B, H, W) in [0, 1]."""
    return edit._replace(control=edit.control * (1 - uncovered[..., None]), uncovered=torch.maximum(edit.uncovered, uncovered),
                         changed=torch.maximum(edit.changed, uncovered))


def clip_of(edit: CoarseEdit, pieces: Pieces | None, picture: Tensor | None, index: int, frames: int, stretch: bool,
            step: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
    """The edit of one picture as a movement, for a sampler that follows a clip.

    Args:
        pieces: of the editor, which are shown on their way; None for an edited picture, which is there at once.
        picture: (B, H, W, 3) the source, if there is one.  frames: T, at least 2.  step: as in
            `of_pieces`.

    Returns:
        (T, H, W, 3), and (T, H, W) where each frame is to be followed: frame 0 everywhere, the others where the edit lies.
    """
    source = one_of(edit.control if picture is None else picture, index)
    if pieces is not None:
        return place_clip(pieces, source, frames, stretch, step)
    control, changed, uncovered = (one_of(part, index) for part in (edit.control, edit.changed, edit.uncovered))
    later = (frames - 1, -1, -1)
    followed = torch.cat([torch.ones_like(changed), (changed * (1 - uncovered)).expand(later)])
    return torch.cat([source.float(), control.expand(*later, -1)]), followed
