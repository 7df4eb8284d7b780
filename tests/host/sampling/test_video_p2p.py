"""Editing a video by its prompts on the host: what comes out unchanged, what is refused, and that it comes off."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from framepainter_tests import text_model

FRAMES, SIDE, STEPS, SCALE = 3, 16, 4, 0.18215


@pytest.fixture(scope="module")
def video_p2p(pack):
    return pack("host.sampling.video_p2p")


@pytest.fixture(scope="module")
def run(pack):
    return pack("host.sampling.edit_run")


@pytest.fixture(scope="module")
def model(pack):
    return text_model.inflated(pack, text_model.small_tensors(pack))


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SOURCE, EDITED, EMPTY = (noise(1, 77, 16, seed=s) for s in (1, 2, 3))
VIDEO = noise(FRAMES, 4, SIDE, SIDE, seed=4)


@pytest.fixture(scope="module")
def prompt(pack):
    """A prompt whose words are one token each."""
    def make(text: str):
        pieces = text.split(" ")
        ids = [49406, *(sum(map(ord, piece)) for piece in pieces), 49407]
        return pack("core.attention.align").Prompt(text, tuple(ids), ("<s>", *pieces, "<e>"))

    return make


@pytest.fixture(scope="module")
def edit(pack, prompt):
    def make(source: str = "a cat sits", edited: str = "a dog sits", words: str = ""):
        return pack("core.attention.words").edit_of(prompt(source), prompt(edited), words)

    return make


@pytest.fixture(scope="module")
def trajectory(pack, model):
    with torch.inference_mode():
        return pack("host.inversion.ddim").invert(model, [[SOURCE, {}]], {"samples": VIDEO}, STEPS)


@pytest.fixture(scope="module")
def patched(video_p2p, run, model, edit, trajectory):
    """The model with one edit on it; words and settings as given."""
    def make(words: str = "", source=trajectory, mask=None, on=model, edited: str = "a dog sits", **settings):
        settings = {"cross": 0.6, "temporal": 0.5, **settings}
        return video_p2p.prompt_attention(on, [edit(edited=edited, words=words)], SOURCE, run.Settings(**settings), source,
                                          mask=mask)

    return make


def sample(pack, model, positive=EDITED, negative=EMPTY, cfg=5.0, start=None, sampler="euler", sigmas=None, callback=None):
    import comfy.sample
    import comfy.samplers

    schedule = pack("core.ddim").Schedule(STEPS).sigmas if sigmas is None else sigmas
    start = noise(FRAMES, 4, SIDE, SIDE, seed=5) * schedule[0] / SCALE if start is None else start
    positive = positive if isinstance(positive, list) else [[positive, {}]]
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, torch.zeros_like(start), cfg, comfy.samplers.ksampler(sampler),
                                          torch.tensor(schedule), positive, [[negative, {}]], start, callback=callback,
                                          disable_pbar=True, seed=0).clone()


@pytest.fixture(scope="module")
def begin(pack, trajectory):
    return pack("host.inversion.ddim").start_latent(trajectory)["samples"]


@pytest.fixture
def kept_run(video_p2p, monkeypatch):
    """The run of the next sampling, by the time that it has begun."""
    found = SimpleNamespace(run=None)

    class Watched(video_p2p.EditRun):
        def __init__(self, *args):
            super().__init__(*args)
            found.run = self

    monkeypatch.setattr(video_p2p, "EditRun", Watched)
    return found


def test_the_model_it_came_from_is_unchanged(pack, model, patched, begin):
    before = sample(pack, model, start=begin)
    after = sample(pack, patched(), start=begin)
    assert (after - before).abs().max() > 0.1
    assert torch.equal(sample(pack, model, start=begin), before)


def test_it_is_replaced_not_stacked(pack, patched, begin):
    once = sample(pack, patched("dog *2"), start=begin)
    assert torch.equal(sample(pack, patched("dog *2", on=patched(branch="fast")), start=begin), once)


def test_the_run_leaves_nothing_on_the_models_options(pack, patched, begin):
    on = patched()
    sample(pack, on, start=begin)
    left = [name for name in on.model_options["transformer_options"] if "prompt" in name]
    assert left == []


def test_an_empty_mask_gives_the_source_bit_for_bit(pack, patched, begin, trajectory):
    """Reconstruction by the stored trajectory is exact by construction, whatever the edit does."""
    found = sample(pack, patched("dog *3", mask=torch.zeros(1, 8 * SIDE, 8 * SIDE)), start=begin)
    exact = trajectory.states[0] / (trajectory.sigmas[-1] ** 2 + 1) ** 0.5 / SCALE
    assert torch.equal(found, exact)
    assert (found - VIDEO).abs().max() < 1e-5


def test_outside_the_mask_the_source_bit_for_bit(pack, patched, begin, trajectory):
    mask = torch.zeros(FRAMES, 8 * SIDE, 8 * SIDE)
    mask[:, 40:80, 30:70] = 1.0
    found = sample(pack, patched(mask=mask, start=0.0), start=begin)
    cells = pack("core.keeping.paste").latent_cells(mask, SIDE, SIDE).bool().expand(-1, 4, -1, -1)
    exact = trajectory.states[0] / (trajectory.sigmas[-1] ** 2 + 1) ** 0.5 / SCALE
    assert torch.equal(found[~cells], exact[~cells])
    assert (found - exact)[cells].abs().mean() > 0.01


def test_without_blend_the_mask_does_nothing(pack, patched, begin):
    mask = torch.zeros(1, 8 * SIDE, 8 * SIDE)
    assert torch.equal(sample(pack, patched(mask=mask, blend=False), start=begin), sample(pack, patched(), start=begin))


def test_blend_words_hold_the_rest_on_the_source(pack, patched, begin, trajectory, kept_run):
    found = sample(pack, patched("@cat, @dog", threshold=0.97), start=begin)
    masks = kept_run.run.masks[0][:, None].expand(-1, 4, -1, -1).bool()
    exact = trajectory.states[0] / (trajectory.sigmas[-1] ** 2 + 1) ** 0.5 / SCALE
    assert 0.0 < float(masks.float().mean()) < 1.0
    assert torch.equal(found[~masks], exact[~masks])


def test_words_and_a_mask_bound_each_other(pack, patched, begin, kept_run):
    sample(pack, patched("@cat, @dog", threshold=0.97), start=begin)
    words = kept_run.run.masks
    mask = torch.zeros(1, 8 * SIDE, 8 * SIDE)
    mask[:, :64] = 1.0
    sample(pack, patched("@cat, @dog", threshold=0.97, mask=mask), start=begin)
    assert not kept_run.run.masks[:, :, 8:].any() and kept_run.run.masks.sum() > 0
    assert words[:, :, 8:].any()


def test_an_unchanged_prompt_is_the_source_bit_for_bit(pack, model, patched, begin, kept_run):
    """Same words, same text, same guidance: the edit and its source go the same way."""
    states = []

    def callback(i, x0, x, total):
        states.append((x, kept_run.run._pass.state))

    same = patched(edited="a cat sits", source=None, branch="guided", cross=1.0, temporal=1.0, blend=False)
    found = sample(pack, same, positive=SOURCE, start=begin, callback=callback)
    assert len(states) == STEPS and all(torch.equal(x, source) for x, source in states)
    plain = sample(pack, model, positive=SOURCE, start=begin)
    last = pack("core.ddim").Schedule(STEPS).sigmas[-1]
    assert (found - plain / (last**2 + 1) ** 0.5).abs().max() < 1e-3


def test_the_fast_branch_carries_the_source_along(pack, model, patched, begin, kept_run):
    """Its source is a run of its own without guidance."""
    sources = []

    def callback(i, x0, x, total):
        sources.append(kept_run.run.source)

    sample(pack, patched(source=None, branch="fast"), start=begin, callback=callback)
    sigmas = pack("core.ddim").Schedule(STEPS).sigmas
    alone = sample(pack, model, positive=SOURCE, cfg=1.0, start=begin) * SCALE
    assert (sources[-1] - alone).abs().max() < 1e-3
    assert len(sources) == len(sigmas) - 1


def test_one_call_holds_all_prompts_and_frames(pack, model, patched, begin, monkeypatch):
    inner, calls = model.model.diffusion_model.forward, []
    monkeypatch.setattr(model.model.diffusion_model, "forward", lambda x, *a, **k: calls.append(len(x)) or inner(x, *a, **k))
    sample(pack, patched(), start=begin)
    assert calls == [3 * FRAMES] * STEPS  # the stored trajectory needs no unconditional source row
    calls.clear()
    sample(pack, patched(source=None, branch="guided"), start=begin)
    assert calls == [4 * FRAMES] * STEPS
    calls.clear()
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: float("inf"))
    sample(pack, patched(), start=begin)
    assert calls == [2 * FRAMES, FRAMES] * STEPS


def test_together_and_apart_agree(pack, model, patched, begin, monkeypatch):
    together = sample(pack, patched(), start=begin)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: float("inf"))
    assert (sample(pack, patched(), start=begin) - together).abs().max() < 1e-3


def test_in_parts_as_at_once(pack, video_p2p, run, edit):
    """Frames worked on one at a time, and features in main memory: the same video, and the same maps."""
    frames, tensors = 7, text_model.small_tensors(pack)
    start = noise(frames, 4, SIDE, SIDE, seed=6) * 10.0

    def edited(**settings):
        on = text_model.inflated(pack, tensors, **settings)
        on = video_p2p.prompt_attention(on, [edit(words="dog *2")], SOURCE, run.Settings(0.6, 0.5, "fast"))
        return sample(pack, on, start=start), video_p2p.read_out_of(on)[0].maps.sums

    whole, maps = edited(chunk=1 << 20)
    assert maps[1].shape[:2] == (frames, 3)
    for parts, other in (edited(chunk=40), edited(chunk=2500, streamed=True)):
        assert (whole - parts).abs().max() < 2e-3 * whole.abs().max()
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(maps, other, strict=True))


def test_a_long_negative_prompt_changes_nothing_in_the_edit(pack, patched, begin):
    """The host repeats the shorter text to its length."""
    short = sample(pack, patched("dog *2"), start=begin)
    long = sample(pack, patched("dog *2"), negative=EMPTY.repeat(1, 2, 1), start=begin)
    assert (short - long).abs().max() < 1e-3


def test_maps_are_left_for_reading(pack, patched, video_p2p, begin):
    on = patched("@dog")
    sample(pack, on, start=begin)
    found, plan = video_p2p.read_out_of(on)
    assert [tuple(maps.shape[:2]) for maps in found.maps.sums] == [(FRAMES, 3), (FRAMES, 3)]
    assert found.masks.shape == (1, FRAMES, SIDE, SIDE) and plan.edits[0].edited.text == "a dog sits"


def test_other_samplers_run_and_are_named(pack, patched, begin, caplog):
    for sampler in ("heun", "dpmpp_2m", "dpm_2"):
        assert torch.isfinite(sample(pack, patched("@dog"), start=begin, sampler=sampler)).all()
        assert f"the sampler is {sampler}" in caplog.text


def test_another_start_is_named(pack, patched, begin, caplog):
    sample(pack, patched(), start=begin)
    assert "another state" not in caplog.text
    sample(pack, patched())
    assert "the sampler starts from another state than the inversion reached" in caplog.text


def test_a_part_of_the_schedule(pack, patched, trajectory):
    """The last two steps alone, and a last level that is forced to 0."""
    sigmas, mask = list(trajectory.sigmas), torch.zeros(1, 8 * SIDE, 8 * SIDE)
    found = sample(pack, patched(mask=mask), start=trajectory.states[2] / SCALE, sigmas=[*sigmas[2:-1], 0.0])
    assert (found - VIDEO).abs().max() < 1e-5


@pytest.mark.parametrize("change, message", [
    (dict(start=noise(5, 4, SIDE, SIDE, seed=0)), "'trajectory' has 3 frames, the latent to sample has 5"),
    (dict(start=noise(FRAMES, 4, 8, 12, seed=0)), "'trajectory' is for 128 x 128 pixels, the latent to sample for 96 x 64"),
    (dict(sigmas=[10.0, 5.0, 0.0]), "'trajectory' was made with 4 steps .* the sampler runs 2 steps"),
    (dict(positive=[[EDITED, {}], [SOURCE, {}]]), "'positive' holds 2 conditionings"),
    (dict(positive=[[EDITED, {"area": (8, 8, 0, 0)}]]), "'positive' is limited to a part of the picture \\(area\\)"),
    (dict(positive=EDITED.repeat(1, 2, 1)), "'positive' has 154 tokens of width 16, the plan is for 77"),
])
def test_runs_that_do_not_fit_are_refused(pack, patched, begin, change, message):
    with pytest.raises(ValueError, match=f"Prompt Attention: .*{message}"):
        sample(pack, patched(), **{"start": begin, **change})


def test_another_nodes_text_attention_is_edited_too(pack, model, patched, begin):
    """A node in place of attn2, which finds its own tokens by `cond_or_uncond` (as image prompts do), and one before it."""
    from comfy.ldm.modules.attention import optimized_attention

    def attention(q, k, v, extra):
        table = torch.tensor([0.0, 0.0])  # what it adds to conditional and unconditional rows
        added = torch.stack([table[i] for i in extra["cond_or_uncond"]]).repeat_interleave(len(q) // len(extra["cond_or_uncond"]))
        return optimized_attention(q, k, v, extra["n_heads"]) + added[:, None, None]

    def with_it(on):
        on = on.clone()
        for block in (("input", 1), ("input", 4), ("middle", 0), ("output", 1)):
            on.set_model_attn2_replace(attention, *block)
        return on

    settings = {"cross": 1.0, "words": "@cat, @dog *3", "threshold": 0.99}
    plain, other = (sample(pack, on, start=begin) for on in (patched(**settings), with_it(patched(**settings))))
    unedited = sample(pack, with_it(patched(cross=0.0, words="@cat, @dog", threshold=0.99)), start=begin)
    assert (other - plain).abs().max() < 1e-3 < 0.05 < (other - unedited).abs().max()
    more = patched().clone()
    more.set_model_attn2_patch(lambda n, k, v, extra: (n, *(torch.cat([t, t[:, :4]], 1) for t in (k, v))))
    with pytest.raises(ValueError, match="Prompt Attention: another node on 'model' adds 4 tokens to the texts"):
        sample(pack, more, start=begin)


def test_words_where_the_edit_may_not_act_need_no_others(pack, patched, begin, trajectory, kept_run):
    found = sample(pack, patched("-@sits", away_threshold=0.99), start=begin)
    held = (kept_run.run.masks[0] == 0)[:, None].expand_as(found)
    assert 0 < float(held.float().mean()) < 1
    source = trajectory.states[0] / (pack("core.ddim").Schedule(STEPS).sigmas[-1] ** 2 + 1) ** 0.5 / SCALE
    assert (found - source)[held].abs().max() < 1e-5 < 1e-2 < (found - source)[~held].abs().max()


def test_other_guiders_are_refused_by_what_they_have(pack, patched, begin):
    """Their order of conditionings is another one."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(patched())
    guider.set_conds(*([[text, {}]] for text in (EDITED, SOURCE, EMPTY)))
    guider.set_cfg(5.0, 2.0)
    with pytest.raises(ValueError, match="Prompt Attention: the sampler's guider has the conditioning middle"):
        guider.sample(torch.zeros_like(begin), begin, comfy.samplers.ksampler("euler"),
                      torch.tensor(pack("core.ddim").Schedule(STEPS).sigmas), disable_pbar=True, seed=0)


def test_masks_that_do_not_fit_are_refused(pack, patched, begin):
    with pytest.raises(ValueError, match="Prompt Attention: 'blend_mask' has 2 masks, the video has 3 frames"):
        sample(pack, patched(mask=torch.zeros(2, 8, 8)), start=begin)
    with pytest.raises(ValueError, match="Prompt Attention: 'blend_mask' is 200 x 100 pixels, the video 128 x 128"):
        sample(pack, patched(mask=torch.zeros(1, 100, 200)), start=begin)


def test_one_frame_is_refused(pack, patched):
    with pytest.raises(ValueError, match="Prompt Attention: the latent to sample has one frame"):
        sample(pack, patched(source=None, branch="fast"), start=noise(1, 4, SIDE, SIDE, seed=0))


def test_what_belongs_to_something_else_is_refused(pack, video_p2p, run, model, edit, trajectory, patched):
    from dataclasses import replace

    null = pack("core.inversion.null_text")

    def refused(message, **change):
        given = {"model": model, "text": SOURCE, "trajectory": trajectory, "settings": run.Settings(), **change}
        with pytest.raises(ValueError, match=f"^{message}"):
            video_p2p.prompt_attention(given["model"], [edit()], given["text"], given["settings"], given["trajectory"],
                                       given.get("null_text"))

    refused("'trajectory' was made with another model", model=text_model.inflated(pack, text_model.small_tensors(pack, seed=9)))
    refused("in 'model' the frames do not see each other", model=text_model.build(
        pack, text_model.split(text_model.small_tensors(pack))[0]))
    refused("'trajectory' was made with another source prompt", text=EDITED)
    refused("'trajectory' has 2 of 4 steps", trajectory=replace(trajectory, states=trajectory.states[:3]))
    refused("source_branch 'stored trajectory' needs 'trajectory'", trajectory=None)
    refused("source_branch 'null-text' needs 'null_text'", settings=run.Settings(branch="null-text"))
    refused("'null_text' has embeddings for 1 steps, 'trajectory' has 4", settings=run.Settings(branch="null-text"),
            null_text=null.NullText([EMPTY]))
    refused("source_branch is 'slow'", settings=run.Settings(branch="slow"))


def test_other_networks_are_refused_by_name(video_p2p, run, edit, checkpoint, pack):
    with torch.inference_mode():
        loaded = pack("host.weights.loading").load(checkpoint, None, None, torch.float32)
    with pytest.raises(ValueError, match="the 'model' input is a SVD_img2vid model"):
        video_p2p.prompt_attention(loaded.model, [edit()], SOURCE)


def test_rows_of_other_inputs_are_joined_too(pack):
    """Control and class vectors of the source are those of the edit."""
    prompt = pack("host.attention.prompt")
    keys = pack("host.keys")
    at_work = prompt.PromptPass(2, torch.zeros(3, 4, 2, 2), [SOURCE, EMPTY], None, False, None, set())
    seen = {}

    def network(x, t, c_concat, c_crossattn, control, options, **kwargs):
        seen.update(x=x, t=t, text=c_crossattn, control=control, options=options, y=kwargs["y"])
        return x * 2

    x, rows = noise(12, 4, 2, 2, seed=0), torch.arange(12.0)
    control = {"output": [rows[:, None], None], "middle": []}
    out = prompt.apply_with_source(network, x, rows, None, noise(12, 154, 16, seed=1), control,
                                   {keys.PROMPT_PASS: at_work, "cond_or_uncond": [1, 0], "uuids": ["a", "b"]}, y=rows)
    assert torch.equal(out, x * 2) and len(at_work.predicted) == 2
    assert seen["options"][keys.PROMPT_VIDEOS] == [1, 1, 0, 0, 2, 3]
    assert seen["options"]["cond_or_uncond"] == [1, 1, 0, 0, 0, 1] and len(seen["options"]["uuids"]) == 6
    expected = torch.cat([rows, rows[6:9], rows[6:9]])
    assert torch.equal(seen["y"], expected) and torch.equal(seen["control"]["output"][0][:, 0], expected)
    assert torch.equal(seen["text"][12:15], SOURCE.repeat(3, 2, 1)) and torch.equal(seen["text"][15:], EMPTY.repeat(3, 2, 1))


def test_words_are_mapped_at_the_scale_that_is_asked_for(pack, patched, video_p2p, begin):
    """The small network has attention at the latent's size and at a half; a quarter is as near as a half can be."""
    for scale, side in ((4, SIDE // 2), (2, SIDE // 2), (1, SIDE)):
        on = patched("@dog", map_scale=scale)
        sample(pack, on, start=begin)
        maps = video_p2p.read_out_of(on)[0].maps
        assert all(found.shape[-2:] == (side, side) for found in maps.sums)
        total = sum(float(found.sum(1).mean()) for found in maps.sums)
        assert 0.0 < total < 2 * STEPS  # of each query's probabilities, those of the words, over the steps
