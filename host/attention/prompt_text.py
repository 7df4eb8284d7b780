"""A prompt as tokens and words, through the host's own tokenizer.

Emphasis, `(word:1.2)`, keeps its meaning in the host: a factor of the embedding. Its marks are not words and do not affect the
alignment.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

from comfy.sd1_clip import escape_important, token_weights, unescape_important
from torch import Tensor

from ...core.attention.align import TOKENS, Prompt, WordError
from ...core.attention.edit import Edit
from ...core.names import printable

ENCODER = "l"  # the host's name for the text encoder of Stable Diffusion 1.x


class PromptPlan(NamedTuple):
    """An edit and the texts it is about.

    source, edited: (1, 77, C) embeddings of the two prompts.
    """

    edit: Edit
    source: Tensor
    edited: Tensor


def plain_text(text: str) -> str:
    """A prompt without marks of emphasis, its words separated by single spaces."""
    parts = (unescape_important(part) for part, _ in token_weights(escape_important(text), 1.0))
    return " ".join("".join(parts).split())


def read_prompt(clip: Any, text: str, name: str) -> Prompt:
    """The words and tokens of a prompt, as the text encoder gets them.

    Args:
        clip: the host's CLIP.  name: of the node's input, for errors.

    Raises:
        WordError: another kind of text encoder, or a prompt whose words cannot be told from its tokens.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise WordError(f"'{name}' has half of a character in it: {printable(text)}. Write it again with whole ones.")
    chunks = clip.tokenize(text)
    if set(chunks) != {ENCODER}:
        raise WordError(f"'clip' has the text encoders {', '.join(sorted(chunks))}; words can be aligned with that of Stable "
                        "Diffusion 1.x alone. Connect CLIP from Load Checkpoint with an SD 1.5 checkpoint.")
    tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
    tokens = [[token for token, _ in chunk] for chunk in chunks[ENCODER]]
    if not all(isinstance(token, Integral) for chunk in tokens for token in chunk):
        raise WordError(f"'{name}' holds an embedding (embedding:name), which cannot be aligned as words. Take it out; in the "
                        "negative prompt embeddings may be used.")
    if len(tokens) > 1:
        raise WordError(f"'{name}' has {count_tokens(clip, text)} tokens; words can be aligned in prompts of at most "
                        f"{TOKENS - 2}. Shorten it.")
    ids = tokens[0][:tokens[0].index(tokenizer.end_token, 1) + 1]
    pieces = [tokenizer.inv_vocab[token].removesuffix("</w>") for token in ids]
    prompt = Prompt(plain_text(text), tuple(ids), tuple(pieces))
    for word, positions in zip(prompt.words, prompt.positions, strict=True):
        if sum(len(pieces[p]) for p in positions) != len(word.lower().encode()):
            raise WordError(f"'{name}' cannot be split into words at '{word}': the tokenizer reads other characters than are "
                            "written there. Write it with plain letters.")
    return prompt


def count_tokens(clip: Any, text: str) -> int:
    """How many tokens a prompt has, in however many chunks the text encoder gets them; embeddings have none."""
    tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
    special = {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}
    return sum(isinstance(token, Integral) and token not in special for chunk in clip.tokenize(text)[ENCODER] for token, _ in chunk)


def encode(clip: Any, text: str) -> list:
    """CONDITIONING of a prompt, as the host's own node gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
