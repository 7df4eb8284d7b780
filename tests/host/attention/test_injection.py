"""Inversion and attention injection on ComfyUI's own network: exactness, refusals, and nothing left behind."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.samplers
import comfy.sd
import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.golden import relative
from framepainter_tests.networks import Edit

# The middle block has 2 x 3 tokens for 6 frames: shapes alone would not tell spatial from temporal attention.
FRAMES, STEPS, HEIGHT, WIDTH = 6, 4, 4, 6


@pytest.fixture(scope="module")
def injection_run(pack):
    return pack("host.attention.injection_run")


@pytest.fixture(scope="module")
def inversion(pack):
    return pack("host.inversion.edm")


@pytest.fixture(scope="module")
def matching(pack):
    return pack("host.attention.injection")


@pytest.fixture(scope="module")
def recording(pack):
    return pack("host.attention.record")


@pytest.fixture(scope="module")
def edit(pack, tool, tmp_path_factory) -> Edit:
    """The smallest network that has every part, and the conditioning of a picture of 48 x 32 pixels."""
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        loaded = pack("host.weights.loading").load(path, None, None, torch.float32)
        picture = torch.rand(1, 8 * HEIGHT, 8 * WIDTH, 3, generator=torch.Generator().manual_seed(1))
        made = pack("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, picture, 8 * HEIGHT, 8 * WIDTH, 6,
                                                           128, 0.02, 0)
    return Edit(loaded, made.positive, made.negative, made.latent["samples"])


@pytest.fixture(scope="module")
def model(pack, edit):
    return pack("host.attention.matching").attach_matching(edit.loaded.model, None, "off", 1.0)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """A LATENT's samples."""
    return torch.randn(FRAMES, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) * 4


@pytest.fixture(scope="module")
def sigmas(pack) -> torch.Tensor:
    return torch.tensor(pack("core.edm").karras_sigmas(STEPS))


@pytest.fixture(scope="module")
def found(inversion, model, edit, clip, sigmas):
    with torch.inference_mode():
        return inversion.invert(model, edit.positive, {"samples": clip}, sigmas)


@pytest.fixture(scope="module")
def edited(edit):
    """Another picture's conditioning: positive, negative."""
    generator = torch.Generator().manual_seed(9)
    (embedding, numbers), = edit.positive
    image = numbers["concat_latent_image"]
    changed = {**numbers, "concat_latent_image": image + 2 * torch.randn(image.shape, generator=generator)}
    return [[embedding + torch.randn(embedding.shape, generator=generator), changed]], edit.negative


def run(inversion, model, found, edited, cfg: float = 2.0, sampler: str = "euler", sigmas=None, latent=None, callback=None):
    import comfy.sample

    start = inversion.start_latent(found)["samples"] if latent is None else latent
    sigmas = torch.tensor(found.sigmas) if sigmas is None else sigmas
    with torch.inference_mode():
        return comfy.sample.sample_custom(model, torch.zeros_like(start), cfg, comfy.samplers.sampler_object(sampler), sigmas,
                                          *edited, start, callback=callback, disable_pbar=True).clone()


def interrupt(step: int):
    def callback(i, *rest):
        if i == step:
            raise mm.InterruptProcessingException()

    return callback


# ---- inversion -------------------------------------------------------------------------------------------------------


def test_more_steps_come_closer_to_the_clip(pack, inversion, model, edit, clip):
    errors = []
    for steps in (4, 16):
        sigmas = torch.tensor(pack("core.edm").karras_sigmas(steps))
        with torch.inference_mode():
            found = inversion.invert(model, edit.positive, {"samples": clip}, sigmas)
        errors.append(relative(run(inversion, model, found, (edit.positive, edit.positive), cfg=1.0), clip))
    assert errors[1] < 0.5 * errors[0], errors


def test_guidance_on_the_model_is_not_used(inversion, model, edit, clip, sigmas, found):
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    (guided,) = VideoLinearCFGGuidance().patch(model, 5.0)
    with torch.inference_mode():
        again = inversion.invert(guided, edit.positive, {"samples": clip}, sigmas)
    assert torch.equal(again.states, found.states)


def test_an_interrupted_inversion_goes_on(inversion, model, edit, clip, sigmas, found, tmp_path, monkeypatch):
    whole = inversion.invert_euler
    evaluated = []

    def stopped_after(steps):
        def invert(model_k, x, levels, extra=None, callback=None, first=0):
            def stop(step):
                callback(step)
                evaluated.append(step["i"])
                if len(evaluated) == steps:
                    raise mm.InterruptProcessingException()

            return whole(model_k, x, levels, extra, stop, first)

        return invert

    def invert():
        with torch.inference_mode():
            return inversion.invert(model, edit.positive, {"samples": clip}, sigmas, tmp_path)

    monkeypatch.setattr(inversion, "invert_euler", stopped_after(2))
    with pytest.raises(mm.InterruptProcessingException):
        invert()
    (partial,) = tmp_path.iterdir()
    assert invert().states.equal(found.states) and evaluated == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    evaluated.clear()
    partial.write_bytes(b"damaged")  # a file that cannot be used is no reason to fail
    monkeypatch.setattr(inversion, "invert_euler", stopped_after(99))
    assert invert().states.equal(found.states) and evaluated == [0, 1, 2, 3]


def test_without_being_asked_nothing_is_written(inversion, model, edit, clip, sigmas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop(*args, **kwargs):
        raise mm.InterruptProcessingException()

    monkeypatch.setattr(inversion, "invert_euler", stop)
    with pytest.raises(mm.InterruptProcessingException), torch.inference_mode():
        inversion.invert(model, edit.positive, {"samples": clip}, sigmas)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_stop_an_inversion(pack, inversion, model, edit, clip, sigmas, found, tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack("core.inversion.trajectory"), "save_file", full)
    with torch.inference_mode():
        again = inversion.invert(model, edit.positive, {"samples": clip}, sigmas, tmp_path)
    assert torch.equal(again.states, found.states) and caplog.text.count("cannot be resumed") == 1
    assert list(tmp_path.iterdir()) == []


def test_wrong_inputs_are_named(inversion, model, edit, clip, sigmas):
    def invert(positive=edit.positive, latent=clip, levels=sigmas):
        return inversion.invert(model, positive, {"samples": latent}, levels)

    with pytest.raises(ValueError, match="'sigmas' cannot be inverted.*must fall"):
        invert(levels=sigmas.flip(0))
    with pytest.raises(ValueError, match="'latent' is of shape .*1, 4, 6, 4, 6"):
        invert(latent=clip.movedim(0, 1)[None])
    with pytest.raises(ValueError, match="'positive' holds 2 conditionings"):
        invert(positive=edit.positive * 2)
    with pytest.raises(ValueError, match="no image latent"):
        invert(positive=[[torch.zeros(1, 1, 4), {}]])
    image = torch.zeros(5, 4, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="for 5 frames, 'latent' has 6"):
        invert(positive=[[edit.positive[0][0], {"concat_latent_image": image}]])


# ---- injected runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settings(injection_run, matching):
    return injection_run.Settings(branches="one after another", coarse_scale=2)


@pytest.fixture(scope="module")
def matched(matching, model, found, settings):
    return matching.inject_attention(model, found, settings)


@pytest.fixture(scope="module")
def reference(inversion, matched, found, edited):
    return run(inversion, matched, found, edited)


def test_the_unpatched_model_keeps_its_bits(inversion, model, matched, found, edited, reference):
    before = run(inversion, model, found, edited)
    assert relative(reference, before) > 1e-2
    assert torch.equal(run(inversion, matched, found, edited), reference)  # and a second run is the first again
    assert torch.equal(run(inversion, model, found, edited), before)
    mm.unload_all_models()
    kinds = ("WatchedAttention", "BypassedLayer")
    assert [n for n, m in model.model.named_modules() if type(m.forward).__name__ in kinds] == []


def test_matching_nothing_is_the_unpatched_model(injection_run, inversion, matching, model, found, edited):
    off = matching.inject_attention(model, found, injection_run.Settings(spatial=False, temporal=False))
    assert torch.equal(run(inversion, off, found, edited), run(inversion, model, found, edited))


def test_a_failed_run_leaves_nothing(inversion, model, matched, found, edited, reference):
    before = run(inversion, model, found, edited)
    with pytest.raises(mm.InterruptProcessingException):
        run(inversion, matched, found, edited, callback=interrupt(1))
    assert "framepainter_injection_run" not in str(matched.model_options["transformer_options"].keys())
    assert torch.equal(run(inversion, model, found, edited), before)
    assert torch.equal(run(inversion, matched, found, edited), reference)


def test_attaching_again_replaces(injection_run, inversion, matching, matched, found, edited, settings, reference):
    other = matching.inject_attention(matched, found, injection_run.Settings(thresholds=(0.0, 0.0), temporal=False))
    again = matching.inject_attention(other, found, settings)
    assert torch.equal(run(inversion, again, found, edited), reference)
    # All thresholds met: the edit's own maps, in another order of arithmetic.
    assert relative(run(inversion, other, found, edited), run(inversion, matched.clone(), found, edited)) > 1e-3


@pytest.mark.parametrize("place", ["RAM", "disk"])
def test_recorded_in_fp32_has_the_bits_of_replay(inversion, matching, recording, model, found, edited, settings, reference,
                                                 tmp_path, place):
    folder = tmp_path / "record" if place == "disk" else None
    with torch.inference_mode():
        record = recording.record_attention(model, found, folder, torch.float32, 1 << 30)
    assert len(record.steps) == STEPS
    evaluations = []
    spied = matching.inject_attention(model, found, settings, record)
    spied.set_model_unet_function_wrapper(lambda f, a: evaluations.append(1) or f(a["input"], a["timestep"], **a["c"]))
    assert torch.equal(run(inversion, spied, found, edited), reference)
    assert len(evaluations) == STEPS  # the source was not run
    record.close()
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize("kind, limit", [(torch.float16, 5e-3), (torch.bfloat16, 5e-2)])
def test_recorded_in_16_bit_is_near(inversion, matching, recording, model, found, edited, settings, reference, kind, limit):
    with torch.inference_mode():
        record = recording.record_attention(model, found, None, kind, 1 << 30)
    near = run(inversion, matching.inject_attention(model, found, settings, record), found, edited)
    assert 0 < relative(near, reference) < limit


def test_what_exceeds_the_budget_is_replayed(inversion, matching, recording, model, found, edited, settings, reference, caplog):
    with torch.inference_mode():
        whole = recording.record_attention(model, found, None, torch.float32, 1 << 30)
        part = recording.record_attention(model, found, None, torch.float32, whole.bytes // 2)
    assert len(part.steps) == STEPS // 2 and "holds 2 of 4 steps" in caplog.text
    assert torch.equal(run(inversion, matching.inject_attention(model, found, settings, part), found, edited), reference)


def test_an_interrupted_recording_leaves_no_files(matching, recording, model, found, tmp_path, monkeypatch):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise mm.InterruptProcessingException()

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(mm.InterruptProcessingException), torch.inference_mode():
        recording.record_attention(model, found, tmp_path / "record", torch.float32, 1 << 30)
    assert list(tmp_path.iterdir()) == []


def test_all_branches_together(injection_run, inversion, matching, model, found, edited, reference):
    together = matching.inject_attention(model, found, injection_run.Settings(branches="together", coarse_scale=2))
    groups = []

    def spy(executor, x, *rest, **kwargs):
        groups.append(len(x) // FRAMES)
        return executor(x, *rest, **kwargs)

    together.add_wrapper_with_key("diffusion_model", "spy", spy)
    assert relative(run(inversion, together, found, edited), reference) < 1e-4
    assert groups == [3] * STEPS


def test_other_nodes_patches_find_the_hosts_groups_beside_the_source(injection_run, inversion, matching, model, found, edited,
                                                                      reference):
    """A patch that indexes with `cond_or_uncond`, as image prompts do, and a cache that tells rows apart by the host's ids."""
    together = matching.inject_attention(model, found, injection_run.Settings(branches="together", coarse_scale=2))
    table, seen, ids = torch.zeros(2), [], set()  # what the patch adds to conditional and unconditional rows

    def patch(q, k, v, extra):
        groups = extra["cond_or_uncond"]
        assert len(q) % len(groups) == 0 and len(extra["uuids"]) == len(groups)
        seen.append(sorted(groups))
        ids.add(tuple(extra["uuids"]))
        return q + table[groups].repeat_interleave(len(q) // len(groups))[:, None, None], k, v

    for put in (together.set_model_attn1_patch, together.set_model_attn2_patch):
        put(patch)
    assert relative(run(inversion, together, found, edited), reference) < 1e-4
    assert seen and all(groups == [0, 0, 1] for groups in seen)
    assert len(ids) == 1 and len(set(*ids)) == 3  # one id a group, the same in every step


def test_conditional_and_unconditional_apart(injection_run, inversion, matching, model, matched, found, edited, reference,
                                             monkeypatch):
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    for branches in ("auto", "together"):
        apart = matching.inject_attention(model, found, injection_run.Settings(branches=branches, coarse_scale=2))
        assert relative(run(inversion, apart, found, edited), reference) < 1e-4


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_2m"])
def test_other_samplers_of_the_host(inversion, matched, found, edited, reference, sampler):
    out = run(inversion, matched, found, edited, sampler=sampler)
    assert torch.isfinite(out).all() and not torch.equal(out, reference)


def test_a_stretch_of_the_schedule(inversion, matched, found, edited, reference):
    """Two samplers one after the other, as KSampler (Advanced) is used."""
    whole = torch.tensor(found.sigmas)
    middle = run(inversion, matched, found, edited, sigmas=whole[:3])
    assert relative(run(inversion, matched, found, edited, sigmas=whole[2:], latent=middle), reference) < 1e-5


@pytest.fixture(scope="module")
def Masks(pack):  # noqa: N802
    return pack("core.attention.injection").Masks


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_a_held_area_comes_out_as_it_was(Masks, inversion, matching, model, found, edited, settings, clip):
    stay = torch.zeros(1, 32, 48)
    stay[..., :24] = 1.0
    held = run(inversion, matching.inject_attention(model, found, settings, masks=Masks(stay=stay)), found, edited)
    free = run(inversion, matching.inject_attention(model, found, settings, masks=Masks(stay=stay), hold=False), found, edited)
    assert relative(held[..., :3], clip[..., :3]) < 1e-4
    assert relative(free[..., :3], clip[..., :3]) > 1e-2 and relative(held[..., 3:], clip[..., 3:]) > 1e-2


def test_masks_one_a_frame(Masks, inversion, matching, model, found, edited, settings, reference):
    change = torch.zeros(FRAMES, 32, 48)
    change[1:] = 1.0
    out = run(inversion, matching.inject_attention(model, found, settings, masks=Masks(change)), found, edited)
    assert relative(out, reference) > 1e-4
    with pytest.raises(ValueError, match="'change_mask' has 2 masks, the trajectory has 6 frames"):
        matching.inject_attention(model, found, settings, masks=Masks(change[:2]))


@pytest.mark.parametrize("branches", ["one after another", "together"])
def test_all_of_it_changed_is_the_plain_edit(Masks, injection_run, inversion, matching, model, found, edited, branches):
    """Spatial and temporal attention both follow the mask; half of it is neither one nor the other."""
    settings = injection_run.Settings(branches=branches, coarse_scale=2, betas=(1.0, 1.0))
    plain, injected = run(inversion, model, found, edited), run(
        inversion, matching.inject_attention(model, found, settings), found, edited)
    everywhere = matching.inject_attention(model, found, settings, masks=Masks(torch.ones(1, 32, 48)))
    assert relative(run(inversion, everywhere, found, edited), plain) < 1e-5 < 1e-2 < relative(injected, plain)
    halves = matching.inject_attention(model, found, settings, masks=Masks(torch.full((1, 32, 48), 0.5)))
    half = run(inversion, halves, found, edited)
    assert relative(half, plain) > 1e-3 and relative(half, injected) > 1e-3


def test_read_out_of_a_run_and_of_a_finished_edit(pack, inversion, matching, model, found, edited, settings):
    matched = matching.inject_attention(model, found, settings)
    out = run(inversion, matched, found, edited)
    read_out, plan = matching.read_out_of(matched.clone())
    sites = list(read_out.sites.values())
    assert len(sites) == len(plan.sites) and all(s[2] == STEPS for s in sites)
    own = torch.cat([(s[0] / s[2]).flatten() for s in sites])
    assert 0 < own.min() and own.max() <= 1
    read_out.sites.clear()
    with torch.inference_mode():
        matching.measure(matched, edited[0], out, [0, STEPS - 1])
    assert all(s[2] == 2 for s in read_out.sites.values()) and len(read_out.sites) == len(sites)
    matching.read_out_of(matched)[0].sites.clear()
    same = matching.inject_attention(model, found, settings)
    run(inversion, same, found, (pack("host.source").conditioning_of(found.conditioning), edited[1]), cfg=1.0)
    none = torch.cat([(s[0] / s[2]).flatten() for s in matching.read_out_of(same)[0].sites.values()])
    assert none.mean() < 0.7 * own.mean()  # the same picture differs less


# ---- LoRAs -----------------------------------------------------------------------------------------------------------


def lora_for(model, pattern: str, bias: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    out = {}
    for name, p in model.model.diffusion_model.state_dict().items():
        if pattern in name and name.endswith(".weight") and p.ndim == (4 if "in_layers" in pattern else 2):
            key = f"diffusion_model.{name.removesuffix('.weight')}"
            if p.ndim == 2:
                out[f"{key}.lora_up.weight"] = torch.randn(p.shape[0], 2, generator=generator) * 0.2
                out[f"{key}.lora_down.weight"] = torch.randn(2, p.shape[1], generator=generator) * 0.2
            else:
                out[f"{key}.diff"] = torch.randn(p.shape, generator=generator) * 0.02
            if bias:
                out[f"{key}.diff_b"] = torch.randn(p.shape[0], generator=generator) * 0.1
    assert out
    return out


@pytest.mark.parametrize("pattern, bias", [("time_stack.0.attn1", False), ("time_stack.0.ff.net.2", True),
                                           ("0.in_layers.2", True)])
def test_a_lora_acts_on_the_edit_alone(injection_run, inversion, matching, recording, model, found, edited, settings, pattern,
                                       bias):
    lora = lora_for(model, pattern, bias)
    with_lora = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)[0]
    merged = run(inversion, with_lora, found, edited)
    off = injection_run.Settings(spatial=False, temporal=False)
    beside = run(inversion, matching.inject_attention(with_lora, found, off), found, edited)
    assert relative(merged, run(inversion, model, found, edited)) > 1e-3
    assert relative(beside, merged) < 1e-4
    # The source is that of the plain model: recorded without the LoRA or replayed beside it, the same bits.
    with torch.inference_mode():
        record = recording.record_attention(model, found, None, torch.float32, 1 << 30)
    replayed = run(inversion, matching.inject_attention(with_lora, found, settings), found, edited)
    recorded = run(inversion, matching.inject_attention(with_lora, found, settings, record), found, edited)
    assert torch.equal(replayed, recorded)
    together = matching.inject_attention(with_lora, found, injection_run.Settings(branches="together", coarse_scale=2))
    assert relative(run(inversion, together, found, edited), replayed) < 1e-4
    assert torch.equal(run(inversion, with_lora, found, edited), merged)


def test_a_clip_inverted_with_a_lora_keeps_it_in_both(inversion, matching, model, edit, clip, sigmas, edited, settings):
    with_lora = comfy.sd.load_lora_for_models(model, None, lora_for(model, "transformer_blocks.0.attn1"), 0.5, 0.0)[0]
    with torch.inference_mode():
        found = inversion.invert(with_lora, edit.positive, {"samples": clip}, sigmas)
    matched = matching.inject_attention(with_lora, found, settings)
    assert matched.patches.keys() == with_lora.patches.keys()
    assert torch.isfinite(run(inversion, matched, found, edited)).all()
    with pytest.raises(ValueError, match="the trajectory belongs to the model"):
        matching.inject_attention(model, found, settings)


def test_a_lora_put_on_afterwards_is_refused(inversion, matching, matched, found, edited, model):
    late = comfy.sd.load_lora_for_models(matched, None, lora_for(model, "time_stack.0.attn1"), 0.5, 0.0)[0]
    with pytest.raises(ValueError, match="a LoRA put on after Match Attention.*before Match Attention"):
        run(inversion, late, found, edited)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_both_values(inversion, matching, recording, model, matched, found, edited, pack):
    start = inversion.start_latent(found)["samples"]
    with pytest.raises(ValueError, match="has 6 frames, the latent to sample has 2"):
        run(inversion, matched, found, edited, latent=start[:2])
    with pytest.raises(ValueError, match="for 48 x 32 pixels, the latent to sample for 32 x 32 pixels"):
        run(inversion, matched, found, edited, latent=start[..., :4])
    with pytest.raises(ValueError, match="made with 4 steps from sigma 700 to 0, the sampler runs 6 steps from sigma 700 to 0"):
        run(inversion, matched, found, edited, sigmas=torch.tensor(pack("core.edm").karras_sigmas(6)))
    import dataclasses

    other = dataclasses.replace(found, model="0123456789abcdef")
    with pytest.raises(ValueError, match="belongs to the model 0123456789ab, 'model' is"):
        matching.inject_attention(model, other)
    with pytest.raises(ValueError, match="belongs to the model 0123456789ab, 'model' is"):
        recording.record_attention(model, other, None, torch.float32, 1)
    with pytest.raises(ValueError, match="has 2 of 4 steps"):
        matching.inject_attention(model, dataclasses.replace(found, states=found.states[:3]))
    record = pack("core.attention.record").AttentionRecord(None, torch.float32, 1, "something else")
    with pytest.raises(ValueError, match="'record' belongs to the trajectory something el"):
        matching.inject_attention(model, found, record=record)


def test_a_saved_trajectory_serves_as_well(pack, inversion, matching, model, found, edited, settings, reference, tmp_path):
    trajectory = pack("core.inversion.trajectory")
    again = trajectory.load(trajectory.save(tmp_path / "clip.safetensors", found))
    assert torch.equal(run(inversion, matching.inject_attention(model, again, settings), again, edited), reference)
