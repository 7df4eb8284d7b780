"""The server's route for the word chips of Prompt Edit, which show the node's own reading of its prompts before anything runs.

The page posts a node's texts to `/framepainter/words` and gets every word with its state. No weights are needed: all
text encoders of Stable Diffusion 1.x have one vocabulary, which comes with the host.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any, NamedTuple

import folder_paths
from comfy.sd1_clip import SD1Tokenizer

from ...core.attention.align import TOKENS, Prompt, WordError
from ...core.attention.chips import LISTS, links_of, read_words
from ...core.attention.words import state_of
from .. import report
from .prompt_text import count_tokens, plain_text, read_prompt

PATH = "/framepainter/words"
ALIGNMENTS = {"automatic": "automatic", "swap word by word": "swap", "refine": "refine"}  # as the node offers them -> kind
MAX_CHARACTERS = 20_000  # of a text; a prompt has at most 75 tokens
_LOCK = threading.Lock()  # the tokenizer keeps state while it works


class _Encoder(NamedTuple):
    """As much of the host's CLIP as reading a prompt takes."""

    tokenizer: SD1Tokenizer

    def tokenize(self, text: str) -> dict[str, Any]:
        return self.tokenizer.tokenize_with_weights(text)


@functools.cache
def _encoder() -> _Encoder:
    return _Encoder(SD1Tokenizer(embedding_directory=folder_paths.get_folder_paths("embeddings")))


def answer(asked: Any) -> dict[str, Any]:
    """What becomes of the words of two prompts.

    Args:
        asked: {"source": text, "edited": text, "words": text, "alignment": one of ALIGNMENTS, "as_released": bool}

    Returns:
        `source` and `edited`: {"words": [...], "tokens": count, "chips": [...]}, a chip for every word, as in
        docs/editor_state.md; no chips if the prompts cannot be aligned.  `links`: [source word, edited word] pairs.
        `said`, `lost`: see `chips.Reading`.  `problem`: a sentence, or None.  `limit`: most tokens of a prompt.

    Raises:
        ValueError: what is asked has another form.
    """
    texts, kind, as_released = _checked(asked)
    with _LOCK:
        try:
            prompts = [read_prompt(_encoder(), texts[name], f"{name}_text") for name in LISTS]
            read = read_words(*prompts, texts["words"], kind, as_released)
        except WordError as error:
            return _unaligned(texts, str(error))
    state = state_of(read.edit)
    return {**{name: {**_size(prompt), "chips": state[name]} for name, prompt in zip(LISTS, prompts, strict=True)},
            "links": links_of(read.edit), "said": read.said, "lost": read.lost, "problem": read.problem, "limit": TOKENS - 2}


def _checked(asked: Any) -> tuple[dict[str, str], Any, bool]:
    if not isinstance(asked, dict):
        raise ValueError("an object is expected")
    texts = {name: asked.get(name, "") for name in (*LISTS, "words")}
    for name, text in texts.items():
        if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
            raise ValueError(f"'{name}' must be a text of at most {MAX_CHARACTERS} characters")
    alignment, as_released = asked.get("alignment", "automatic"), asked.get("as_released", False)
    if not isinstance(alignment, str) or alignment not in ALIGNMENTS or not isinstance(as_released, bool):
        raise ValueError(f"'alignment' must be one of {', '.join(ALIGNMENTS)}, 'as_released' true or false")
    return texts, ALIGNMENTS[alignment], as_released


def _size(prompt: Prompt) -> dict[str, Any]:
    return {"words": list(prompt.words), "tokens": len(prompt.ids) - 2}


def _unaligned(texts: dict[str, str], problem: str) -> dict[str, Any]:
    """The words alone, of prompts that cannot be aligned."""
    def alone(text: str) -> dict[str, Any]:
        return {"words": plain_text(text).split(" "), "tokens": count_tokens(_encoder(), text), "chips": []}

    return {**{name: alone(texts[name]) for name in LISTS}, "links": [], "said": None,
            "lost": {name: [] for name in LISTS}, "problem": problem,
            "limit": TOKENS - 2}


def register() -> None:
    """Let the host's server answer the page; nothing happens without a server."""
    host = report.server()
    if host is None:
        return
    from aiohttp import web  # the server's own; absent where nodes run without one

    @host.routes.post(PATH)
    async def words(request: web.Request) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(answer, await request.json()))
        except (ValueError, RecursionError) as error:
            return web.json_response({"error": str(error)}, status=400)
