"""Skip-interval attention against recorded values of the published code: inversion and matched editing of a second clip."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests.golden import Case, of_kind

SCALE = 0.18215


def check(found: torch.Tensor, expected: torch.Tensor, case: Case, what: str) -> None:
    tolerance = case.info["tolerance"]
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} against {tuple(expected.shape)}"
    rms = float((found - expected).norm() / expected.norm())
    assert rms <= tolerance["rms_relative"], f"{what}: {rms:.2e}"
    assert float((found - expected).abs().max() / expected.pow(2).mean().sqrt()) <= tolerance["max_over_rms"], what


@pytest.fixture(scope="module", params=of_kind("i2vedit", "skip_interval"), ids=repr)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope="module")
def base(pack, case: Case):
    """The case's network as a model."""
    tensors = case.network("unet")
    names = pack("core.weights.diffusers_svd").to_comfy(tensors)
    return pack("host.weights.building").build_unet({names[n]: t for n, t in tensors.items()}, torch.float32, 64, False)


@pytest.fixture(scope="module")
def first(pack, base, case: Case):
    """The first clip's trajectory."""
    return pack("host.inversion.edm").invert(base, *source(pack, case, 0), schedule(base, case.info["parameters"]["steps"]))


@pytest.fixture(scope="module")
def second(pack, base, case: Case, first):
    """The second clip's, which attends to the first's."""
    remembering = pack("host.attention.skip_interval").remember_inversion(base, first)
    return pack("host.inversion.edm").invert(remembering, *source(pack, case, 1), schedule(base, case.info["parameters"]["steps"]))


def schedule(model, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", steps)


def source(pack, case: Case, clip: int):
    """CONDITIONING and LATENT of a source clip."""
    t, frames = case.tensors, case.info["parameters"][f"frames_clip{clip}"]
    image = pack("core.inversion.condition").source_condition(t[f"clip{clip}_source_key_latents"],
                                                              t[f"clip{clip}_source_first_latents"], frames)
    embedding = t[f"clip{clip}_source_image_embeds"].reshape(1, 1, -1)
    host = pack("host.conditioning")
    positive, _ = host.svd_conditioning(embedding, image, host.MicroConds(8, 127, 0.02))
    return positive, {"samples": t[f"clip{clip}_source_latents"][0] / SCALE}


def edit(pack, model, case: Case, trajectory, embedding, image, noise):
    """Core's sampler from the inverted latent; conditioning, states before each step, predictions, final state."""
    import comfy.sample
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    p = case.info["parameters"]
    (model,) = VideoLinearCFGGuidance().patch(model, 1.0)
    image = pack("core.inversion.condition").edit_condition(image, noise, 0.02)
    host = pack("host.conditioning")
    positive, negative = host.svd_conditioning(embedding.reshape(1, 1, -1), image, host.MicroConds(p["fps_id"], 127, 0.02))
    start, states, predicted = pack("host.inversion.edm").start_latent(trajectory)["samples"], [], []

    def callback(i, x0, x, total):
        states.append(x.clone())
        predicted.append(x0.clone())

    with torch.inference_mode():
        out = comfy.sample.sample(model, torch.zeros_like(start), p["steps"], p["guidance_max"], "euler", "karras", positive,
                                  negative, start, disable_noise=True, callback=callback, disable_pbar=True)
    return positive, negative, torch.stack(states), predicted, out * SCALE


def test_inversion_of_both_clips(case: Case, first, second):
    t = case.tensors
    check(first.inverted, t["clip0_inverted_latents"][0], case, "clip 0 inverted")
    for i, expected in enumerate(t["clip1_trajectory"]):
        check(second.states[i], expected, case, f"clip 1 state {i}")
    check(second.inverted, t["clip1_inverted_latents"][0], case, "clip 1 inverted")


@pytest.mark.parametrize("branches", ["one after another", "together"])
def test_editing_of_both_clips(pack, base, branches: str, case: Case, first, second):
    matching, skip = pack("host.attention.injection"), pack("host.attention.skip_interval")
    t, p = case.tensors, case.info["parameters"]
    settings = pack("host.attention.injection_run").Settings(tuple(p["mask_thr"]), tuple(p["temporal_step_thr"]), branches=branches)
    edited = edit(pack, matching.inject_attention(base, first, settings), case, first, t["clip0_edited_image_embeds"],
                  t["clip0_edited_image_latents"], t["clip0_augmentation_noise"])
    check(edited[-1], t["clip0_final_latents"][0], case, "clip 0 edited")

    past = skip.PastEdit(edited[2], edited[0], edited[1], first)
    patched = skip.remember_edit(matching.inject_attention(base, second, settings), past)
    *_, predicted, final = edit(pack, patched, case, second, t["clip1_edited_image_embeds"], edited[-1][-1:] / SCALE,
                                t["clip1_augmentation_noise"])
    for i, expected in enumerate(t["clip1_pred_original"]):
        check(predicted[i], expected, case, f"clip 1 prediction {i}")
    check(final, t["clip1_final_latents"][0], case, "clip 1 edited")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_of_a_second_clip(pack, base, case: Case, first, precision: str):
    """The recorded numbers in fp32; in bf16, the node's default, the same loss to its rounding."""
    t, p = case.tensors, case.info["parameters"]
    trainer, motion = pack("host.training.motion_lora"), pack("core.training.motion_lora.objective")
    presets = pack("core.training.motion_lora.presets")
    network = trainer.make_network(base, presets.MotionSettings(rank=2, precision=precision, dropout=0.0, checkpointing=True),
                                   watched=True)
    remember = trainer.with_memory(network, first)
    clip = motion.MotionClip(t["clip1_source_latents"][0], t["clip1_source_first_latents"][0],
                             t["clip1_source_image_embeds"].reshape(1, -1))
    for i, row in enumerate(p["training"]):
        seen = []

        def recorded(given, seen=seen):
            out = network(given)
            seen.append(out.v.detach())
            return out

        assert pack("core.inversion.schedule").sampling_step(row["sigma"], first.sigmas) == row["denoising_index"]
        with torch.enable_grad():
            remember(row["sigma"])
            loss = motion.motion_loss(recorded, clip, torch.tensor([row["sigma"]]), t["train_noise"],
                                      t["train_condition_noise"][:, 0], torch.tensor([motion.MICRO_CONDS["release"]]))
            loss.backward()
        if precision == "fp32":
            check(seen[0], t[f"train_output_{i}"], case, f"output {i}")
        assert abs(float(loss) / row["loss"] - 1) < {"fp32": 1e-5, "bf16": 2e-2}[precision]
        ups = [q for n, q in network.named_parameters() if n.endswith("attn1.to_v.lora_up.weight") and "time_stack" in n]
        assert all(q.grad is not None and float(q.grad.norm()) > 0 for q in ups)
