"""Whole edits through the host's own samplers against recorded values of the published code."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from framepainter_tests import text_model
from framepainter_tests.golden import Case
from framepainter_tests.videop2p import check, network, of_kind, rows, unet, video

SCALE = 0.18215
PROBED = "down_blocks.2.attentions.0.proj_in.weight"  # of the transformer whose attention is recorded
BRANCHES = {"conditional": "fast", "guided, with the optimised": "null-text", "guided, with the initial": "guided"}


def edits_of(pack, case: Case) -> list:
    """The edits of a case, said as the editor of words says them."""
    align, words = pack("core.attention.align"), pack("core.attention.words")
    p = case.info["parameters"]
    source, *edited = (align.Prompt(text, tuple(ids), tuple(pieces))
                       for text, ids, pieces in zip(p["prompts"], p["tokens"], p["token_pieces"], strict=True))
    kind = "swap" if "replace" in p["edit"]["type"] else "refine"
    return [words.edit_of(source, e, json.dumps(chips(p, source, e)), kind, as_released=True) for e in edited]


def chips(p: dict, source, edited) -> dict:
    """The state of the editor: weights and steps of the edited prompt's words, blend words of both prompts."""
    out = {"version": 1, "source": [], "edited": []}

    def mark(name: str, words, **what) -> None:
        prompt = source if name == "source" else edited
        for word in words if isinstance(words, list) else [words]:
            found = [word] if isinstance(word, int) else [n for n, other in enumerate(prompt.words) if other == word]
            out[name] += [{"at": n, "word": prompt.words[n], **what} for n in found]

    if p["edit"]["reweight"]:
        for word, value in zip(p["edit"]["reweight"]["words"], p["edit"]["reweight"]["values"], strict=True):
            mark("edited", word, weight=value)
    for word, share in intervals(p).items():
        if word != "default_":
            mark("edited", word, steps=share if isinstance(share, list) else [0.0, share])
    for kind, flag in (("words", "blend"), ("substruct_words", "away")):
        for name, words in zip(("source", "edited"), (p["local_blend"] or {}).get(kind) or (), strict=False):
            mark(name, words, **{flag: True})
    return out


def intervals(p: dict) -> dict:
    given = p["edit"]["cross_replace_steps"]
    return given if isinstance(given, dict) else {"default_": given}


def model_for(pack, case: Case, chunk: int | None = None):
    """The case's model with Prompt Attention on it."""
    video_p2p, run, null = pack("host.sampling.video_p2p"), pack("host.sampling.edit_run"), pack("core.inversion.null_text")
    p, t = case.info["parameters"], case.tensors
    branch = next(b for start, b in BRANCHES.items() if p["source_branch"].startswith(start))
    shares = [share if isinstance(share, int | float) else tuple(share)
              for share in (intervals(p).get("default_", [0.0, 1.0]), p["edit"]["self_replace_steps"])]
    blend = p["local_blend"] or {}
    settings = run.Settings(*shares, branch, bool(blend), *blend.get("thresholds", [0.3, 0.3]), blend.get("start_blend", 0.2))
    text = t["encoder_hidden_states"][:1]
    embeddings = null.NullText(list(t["null_embeddings"])) if "null_embeddings" in t else None
    model = text_model.inflated(pack, unet(pack, case), **({} if chunk is None else {"chunk": chunk}))
    return video_p2p.prompt_attention(model, edits_of(pack, case), text, settings, null_text=embeddings)


def sampled(pack, case: Case, model, monkeypatch) -> SimpleNamespace:
    """Core's euler sampler on our levels: latents of all prompts after each step, and the masks of each blending."""
    import comfy.sample
    import comfy.samplers

    video_p2p, ddim = pack("host.sampling.video_p2p"), pack("core.ddim")
    t, p = case.tensors, case.info["parameters"]
    sigmas = ddim.Schedule(p["steps"]).sigmas
    runs, edits, sources, masks = [], [], [], []

    class Watched(video_p2p.EditRun):
        def __init__(self, *args):
            super().__init__(*args)
            runs.append(self)

    monkeypatch.setattr(video_p2p, "EditRun", Watched)
    frames, count = t["x_T"].shape[2], len(p["prompts"]) - 1
    start = rows(t["x_T"]) * (sigmas[0] ** 2 + 1) ** 0.5 / SCALE
    start = start.repeat(count, 1, 1, 1)
    positive = [[t["encoder_hidden_states"][1:].repeat_interleave(frames if count > 1 else 1, 0), {}]]

    def factor(step: int) -> float:
        return (sigmas[step] ** 2 + 1) ** -0.5

    def callback(i, x0, x, total):
        edits.append(x * factor(i))
        sources.append(runs[0].source * factor(i + 1))
        if runs[0].masks is not None:
            masks.append(runs[0].masks.clone())

    with torch.inference_mode():
        out = comfy.sample.sample_custom(model, torch.zeros_like(start), p["guidance_scale"], comfy.samplers.ksampler("euler"),
                                         torch.tensor(sigmas), positive, [[t["uncond_embedding"], {}]], start, callback=callback,
                                         disable_pbar=True, seed=0)
    edits = [*edits[1:], out * SCALE]
    return SimpleNamespace(edits=torch.stack([video(e, count) for e in edits]), sources=torch.stack([video(s) for s in sources]),
                           masks=torch.stack(masks) if masks else None, run=runs[0])


@pytest.mark.parametrize("case", of_kind("controlled_sampling"), ids=repr)
def test_controlled_sampling(pack, case: Case, monkeypatch):
    model = model_for(pack, case)
    found = sampled(pack, case, model, monkeypatch)
    check(case, "latents", torch.cat([found.sources, found.edits], 1))
    blend = case.info["parameters"]["local_blend"]
    assert (found.masks is None) == (blend is None)
    if blend:
        expected = case.tensors["masks"]
        assert len(found.masks) == len(expected) == case.info["parameters"]["steps"] - blend["first_blending_step"]
        assert torch.equal(found.masks.to(expected.dtype), expected[:, 1:])
        prompts = [found.run.maps.sums[n] for n in range(2)]
        assert all(maps.shape[-2:] == tuple(blend["map_size"]) for maps in prompts)


def probed(case: Case) -> bool:
    return any(name.startswith("probe/") for name in case.info["outputs"])


@pytest.mark.parametrize("case", [c for c in of_kind("controlled_sampling") if probed(c)], ids=repr)
def test_probabilities_of_the_first_step(pack, case: Case, monkeypatch):
    """Probabilities as they act: values that are 1 at one key and 0 at the others come out of the hook itself."""
    prompt = pack("host.attention.prompt")
    hook, found = prompt.PromptPass.__call__, {}

    class Seen(Exception):
        """All is found: the steps that follow are those of the test above."""

    path = pack("core.weights.inflated").to_comfy(network(case))[PROBED].removesuffix(".proj_in.weight")

    def acting(attention, place, q, k, v, keys: int):
        """(rows, heads, queries, keys): the hook's answer to one-hot values, as many keys at a time as a head is wide."""
        width, out = v.shape[-1] // place.heads, []
        for first in range(0, keys, width):
            shown = torch.zeros_like(v).unflatten(-1, (place.heads, width))
            for n in range(min(width, keys - first)):
                shown[:, first + n, :, n] = 1.0
            out.append(attention(q, k, shown.flatten(-2)).unflatten(-1, (place.heads, width)).transpose(1, 2))
        return torch.cat(out, -1)[..., :keys]

    def watched(self, place, q, k, v, attention, options):
        if len(found) == 4:
            raise Seen
        kind = "cross" if place.kind == "attn2" else "temporal"
        groups = options.get(pack("host.keys").PROMPT_VIDEOS, ())
        if prompt.SOURCE in groups and place.site.startswith(f"{path}.") and f"{kind}_after" not in found:
            quiet = prompt.PromptPass(self.edits, self.state, self.texts, self.edit, self.temporal, None, set())
            for when, attend in (("before", attention), ("after", lambda q, k, v: hook(quiet, place, q, k, v, attention, options))):
                p = acting(attend, place, q, k, v, k.shape[1]).unflatten(0, (len(groups), -1))
                found[f"{kind}_{when}"] = p[[groups.index(prompt.SOURCE), groups.index(0)]]
        return hook(self, place, q, k, v, attention, options)

    monkeypatch.setattr(prompt.PromptPass, "__call__", watched)
    model = model_for(pack, case)
    with pytest.raises(Seen):
        sampled(pack, case, model, monkeypatch)
    for when in ("before", "after"):
        check(case, f"probe/cross_{when}", found[f"cross_{when}"][:, :, :1])
        check(case, f"probe/temporal_{when}", found[f"temporal_{when}"])
