"""A streamed network: features of the frames are kept in main memory, and a few frames at a time are processed on the model's
device.

For clips whose features do not fit beside the model. What is needed on the device then does not grow with the number of frames;
the price is that features are transferred at every layer. Results are those of the network as a whole: statistics of the pooled
norms are gathered in a first pass over the frames, frame attention is given frame 0, temporal attention takes some positions at a
time.

Only the order of layers inside ComfyUI's ResBlock and SpatialTransformer is repeated here; the layers do their own work.

Legend: V videos and conditioning groups in one pass, F frames, L tokens of a frame, C channels; rows are (V*F, ...).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ...core.models.inflated import GroupStatistics, by_parts
from .inflated_layers import Pass, _Block, _Forward, pass_now, running

STORE = torch.device("cpu")


class _Streamed(_Forward):
    """A layer that takes features from the store and puts its own there."""

    def by_frames(self, work: Callable[[slice], Tensor], rows: Tensor, device: torch.device | None = None) -> Tensor:
        """Work on some frames of all videos at a time: work(frames) -> (V*f, ...). Gives (V*F, ...).

        Args:
            rows: (V*F, C, h, w), whose size decides how many frames are worked on at once.
            device: of the result; the store where None.
        """
        frames = pass_now().frames
        videos = len(rows) // frames

        def part(which: slice) -> Tensor:
            return work(which).unflatten(0, (videos, -1))

        return by_parts(frames, self._at_once(rows), part, 1, device or STORE).flatten(0, 1)

    def statistics(self, norm: nn.GroupNorm, rows: Tensor) -> GroupStatistics:
        """Statistics of a pooled norm over (V*F, C, h, w)."""
        out = GroupStatistics(norm.num_groups)
        frames, size = pass_now().frames, self._at_once(rows)
        for start in range(0, frames, size):
            out.add(_taken(rows, slice(start, start + size)).unflatten(0, (len(rows) // frames, -1)))
        return out

    def _at_once(self, rows: Tensor) -> int:
        """Frames worked on at once."""
        return max(1, self.chunk * pass_now().frames // (len(rows) * rows.shape[-2] * rows.shape[-1]))


def _taken(rows: Tensor, part: slice) -> Tensor:
    """Some frames of (V*F, ...), on the device of the pass: (V*f, ...)."""
    now = pass_now()
    return rows.unflatten(0, (-1, now.frames))[:, part].flatten(0, 1).to(now.device)


def _on_frames(part: slice, **more: Any) -> AbstractContextManager[None]:
    """For layers that run on some frames; what these cannot tell alone comes along."""
    now = pass_now()
    return running(Pass(len(range(*part.indices(now.frames))), now.device, part, **more))


class _EachFrame(_Streamed):
    """A layer whose frames do not see each other: the first convolution, samplers between levels."""

    def __call__(self, x: Tensor, **kwargs: Any) -> Tensor:
        return self.by_frames(lambda part: self.forward(_taken(x, part), **kwargs), x)


class _Residual(_Streamed):
    """ComfyUI's ResBlock in two halves, as its second norm needs the first half of all frames."""

    def __call__(self, x: Tensor, emb: Tensor) -> Tensor:
        block, videos = self.module, len(x) // pass_now().frames
        before, between = self.statistics(block.in_layers[0], x), GroupStatistics(block.out_layers[0].num_groups)

        def first_half(part: slice) -> Tensor:
            rows, embedded = _taken(x, part), block.emb_layers(_taken(emb, part))
            with _on_frames(part, statistics=before):
                h = block.in_layers(rows)
            h = h + embedded.type(h.dtype)[..., None, None]
            between.add(h.unflatten(0, (videos, -1)))
            return h

        def second_half(part: slice) -> Tensor:
            rows, halfway = _taken(x, part), _taken(h, part)
            with _on_frames(part, statistics=between):
                return block.skip_connection(rows) + block.out_layers(halfway)

        h = self.by_frames(first_half, x)
        return self.by_frames(second_half, x)


class _Transformer(_Streamed):
    """ComfyUI's SpatialTransformer with one block: the block on some frames, its temporal layer on some positions."""

    def __init__(self, *given: Any, block: _Block):
        super().__init__(*given)
        self.block = block

    def on(self, module: nn.Module) -> _Transformer:
        out = super().on(module)
        out.block = self.block.on(module.transformer_blocks[0])
        return out

    def __call__(self, x: Tensor, context: Tensor | list | None = None, transformer_options: dict | None = None) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        context = context[0] if isinstance(context, list) else context
        block, size = self.module.transformer_blocks[0], x.shape[-2:]
        options["activations_shape"], options["block_index"] = list(x.shape), 0
        first = block.norm1(self._tokens(_taken(x, slice(0, 1))))

        def spatial(part: slice) -> Tensor:
            tokens, text = self._tokens(_taken(x, part)), _taken(context, part)
            with _on_frames(part, first=first):
                return block(tokens, context=text, transformer_options=options)

        def back(part: slice) -> Tensor:
            out = self._pictures(_taken(tokens, part), size)
            return out + _taken(x, part)

        tokens = self.block.temporal(self.by_frames(spatial, x), options)
        return self.by_frames(back, x)

    def _tokens(self, rows: Tensor) -> Tensor:
        """(V*f, C, h, w) -> (V*f, L, C), through the entry."""
        layer = self.module
        rows = layer.norm(rows)
        if layer.use_linear:
            return layer.proj_in(rows.movedim(1, 3).flatten(1, 2).contiguous())
        return layer.proj_in(rows).movedim(1, 3).flatten(1, 2).contiguous()

    def _pictures(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(V*f, L, C) -> (V*f, C, h, w), through the exit."""
        layer = self.module
        if layer.use_linear:
            return layer.proj_out(tokens).unflatten(1, size).movedim(3, 1).contiguous()
        return layer.proj_out(tokens.unflatten(1, size).movedim(3, 1).contiguous())


class _Head(_Streamed):
    """The last norm and convolution; the prediction goes to the device of the pass."""

    def __call__(self, x: Tensor) -> Tensor:
        statistics = self.statistics(self.module[0], x)

        def work(part: slice) -> Tensor:
            rows = _taken(x, part)
            with _on_frames(part, statistics=statistics):
                return self.forward(rows)

        return self.by_frames(work, x, pass_now().device)


_EACH_FRAME = re.compile(r"(input_blocks\.0\.0|input_blocks\.\d+\.0(?=\.op\.)|output_blocks\.\d+\.\d+(?=\.conv\.))\.")


def streamed_forwards(unet: nn.Module, inner: dict[str, _Forward],
                      forward_of: Callable[[str], Callable]) -> dict[str, _Forward]:
    """What stands in for the forward of each outer layer, by path.

    Args:
        inner: see `inflated_layers.forwards`.
        forward_of: the forward that a layer has now.
    """
    out: dict[str, _Forward] = {}

    def put(kind: type[_Streamed], path: str, like: _Forward, **more: Any) -> None:
        out[path] = kind(forward_of(path), unet.get_submodule(path), path, like.settings, like.chunk, **more)

    for path, forward in inner.items():
        if path.endswith(".in_layers.0"):
            residual = path.removesuffix(".in_layers.0")
            put(_Residual, residual, min(forward, inner[f"{residual}.out_layers.0"], key=lambda norm: norm.chunk))
        elif isinstance(forward, _Block):
            put(_Transformer, path.rpartition(".transformer_blocks.")[0], forward, block=forward)
    for path in {m[1] for name in unet.state_dict() if (m := _EACH_FRAME.match(name))}:
        put(_EachFrame, path, min(inner.values(), key=lambda layer: layer.chunk))
    put(_Head, "out", inner["out.0"])
    return out
