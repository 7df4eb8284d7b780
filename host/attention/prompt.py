"""One evaluation of a network with edited prompts: the source's rows beside the edits', and the hook on their attention.

The host evaluates the edits alone, conditional and unconditional. To the pass that holds the conditional ones, the source's
rows are added, so that all prompts and frames of a video are in one call of the network; they come off the result again.
In `cond_or_uncond` each video of a pass has an entry then, 0 for conditional and 1 for unconditional ones as ever: other nodes
index with it. Which of them are the source's is told beside it, under a key of ours.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core.attention.align import TOKENS
from ...core.attention.prompt import (
    CrossEdit,
    WordMaps,
    edited_cross_attention,
    edited_probabilities,
    followed_temporal_attention,
)
from ...core.models.inflated import CHUNK
from .. import keys
from .hooks import Place, probabilities

SOURCE, SOURCE_EMPTY = 2, 3  # among the videos of a pass, beside the edits' 0 (conditional) and 1 (unconditional)
AS_THE_HOST = {SOURCE: 0, SOURCE_EMPTY: 1}
IDS = {video: uuid.uuid4() for video in AS_THE_HOST}  # among the host's ids of conditionings, by which caches know rows again


class PromptPass:
    """What one evaluation does.

    edits: E.  state: (F, 4, h, w) of the source, as the sampler holds it.
    texts: embeddings (1, K, C) of the source's rows: of its prompt, and, if it is guided, the unconditional one.
    edit: of cross-attention, None for none.  temporal: whether temporal attention follows the source.
    maps: that take the words' maps in `sites`, None for none.
    """

    def __init__(self, edits: int, state: Tensor, texts: list[Tensor], edit: CrossEdit | None, temporal: bool,
                 maps: WordMaps | None, sites: set[str], chunk: int = CHUNK):
        self.edits, self.state, self.texts = edits, state, texts
        self.edit, self.temporal, self.maps, self.sites, self.chunk = edit, temporal, maps, sites, chunk
        self.predicted: list[Tensor] = []  # denoised (F, 4, h, w) of the source's rows, once they have been evaluated

    def __call__(self, place: Place, q: Tensor, k: Tensor, v: Tensor, attention: Callable, options: dict) -> Tensor:
        """The hook. A hook that is asked after this one sees parts of the rows."""
        groups = list(options.get(keys.PROMPT_VIDEOS, ()))
        if SOURCE not in groups:
            return attention(q, k, v)
        source, edits = groups.index(SOURCE), [n for n, group in enumerate(groups) if group == 0]
        if place.kind == "attn_temp":
            if not self.temporal:
                return attention(q, k, v)
            rows = (t.unflatten(0, (len(groups), -1)) for t in (q, k, v))
            return followed_temporal_attention(*rows, source, edits, attention, self.chunk).flatten(0, 1)
        if k.shape[1] % TOKENS:
            raise ValueError(f"Prompt Attention: another node on 'model' adds {k.shape[1] % TOKENS} tokens to the texts, so their "
                             "words cannot be told apart. Take that node off the model.")
        videos = tuple(t.unflatten(0, (len(groups), -1)) for t in (q, k, v))
        if self.maps is not None and place.site in self.sites:
            self._look(place, videos[0], videos[1], source, edits)
        if self.edit is None:
            return attention(q, k, v)
        return edited_cross_attention(*videos, source, edits, self.edit, attention, self.chunk).flatten(0, 1)

    def _look(self, place: Place, q: Tensor, k: Tensor, source: int, edits: list[int]) -> None:
        """Keep where words look in a layer, after editing."""
        def own(video: int, frames: slice) -> Tensor:
            return probabilities(q[video, frames], k[video, frames], place.heads)

        for prompt, video in enumerate((source, *edits)):
            def found(frames: slice, prompt: int = prompt, video: int = video) -> Tensor:
                if prompt == 0 or self.edit is None:
                    return own(video, frames)
                return edited_probabilities(own(source, frames), own(video, frames), self.edit, prompt - 1)

            self.maps.add(prompt, found, place.size, place.part, self.chunk)


def apply_with_source(executor: Callable, x: Tensor, t: Tensor, c_concat: Tensor | None = None,
                      c_crossattn: Tensor | None = None, control: Any = None, transformer_options: dict | None = None,
                      **kwargs: Any) -> Tensor:
    """APPLY_MODEL wrapper: the source's rows go after the edits', and come off the result."""
    options = transformer_options or {}
    at_work: PromptPass | None = options.get(keys.PROMPT_PASS)
    if at_work is None:
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
    groups, ids = list(options.get("cond_or_uncond", (0,))), list(options.get("uuids", ()))
    videos = [group for group in groups for _ in range(at_work.edits)]
    ids = [found for found in ids for _ in range(at_work.edits)]
    frames = len(x) // len(videos)
    if 0 not in groups:
        return executor(x, t, c_concat, c_crossattn, control, {**options, **_videos(videos, ids)}, **kwargs)
    texts, first = at_work.texts, videos.index(0) * frames
    beside = slice(first, first + frames)  # rows of the first edit, whose other inputs the source shares
    added = [SOURCE, SOURCE_EMPTY][:len(texts)]

    def joined(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value, *[value[beside]] * len(added)]) if len(value) == len(x) else value
        if isinstance(value, dict):
            return {name: joined(part) for name, part in value.items()}
        return [joined(part) for part in value] if isinstance(value, list) else value

    context = [c_crossattn, *(_fitted(text, c_crossattn.shape[1]).to(c_crossattn).expand(frames, -1, -1) for text in texts)]
    options = {**options, **_videos([*videos, *added], [*ids, *(IDS[video] for video in added)])}
    out = executor(torch.cat([x, *[at_work.state.to(x)] * len(added)]), joined(t), joined(c_concat), torch.cat(context),
                   joined(control), options, **joined(kwargs))
    at_work.predicted = list(out[len(x):].chunk(len(added)))
    return out[:len(x)]


def _videos(videos: list[int], ids: list[Any]) -> dict[str, Any]:
    """Options of a pass in which each entry of `cond_or_uncond` is one video."""
    known = [AS_THE_HOST.get(video, video) for video in videos]
    return {"cond_or_uncond": known, keys.PROMPT_VIDEOS: videos, "uuids": ids}


def _fitted(text: Tensor, tokens: int) -> Tensor:
    """A text repeated to the length of a longer one beside it, which changes nothing."""
    if tokens % text.shape[1]:
        raise ValueError(f"The texts of a pass have {tokens} and {text.shape[1]} tokens, which do not fit together. Shorten the "
                         f"negative prompt to {TOKENS - 2} tokens.")
    return text.repeat(1, tokens // text.shape[1], 1)
