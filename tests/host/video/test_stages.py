"""The stages of the long-video job on a network of random weights: any order, one way of drawing noise, nothing kept for long."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from framepainter_tests import tiny
from safetensors.torch import load_file, save_file

HEIGHT, WIDTH, STEPS = 32, 48, 3


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def frames():
    """Eight frames of a bright bar that moves."""
    out = torch.full((8, HEIGHT, WIDTH, 3), 0.2)
    for i in range(8):
        out[i, 8:24, 2 + 4 * i:12 + 4 * i] = torch.tensor([0.9, 0.5, 0.1])
    return out


@pytest.fixture
def job(pack, loaded, frames, tmp_path):
    """A job of three clips, without a LoRA."""
    propagate, clips = pack("host.video.propagate"), pack("core.video.clips")

    def make(folder: str = "job", **changes):
        settings = propagate.Settings(HEIGHT, WIDTH, **{"steps": STEPS, "lora": "none", "fps": 8.0, **changes})
        models = propagate.Models(loaded.model, loaded.clip_vision, loaded.vae)
        with torch.inference_mode():
            return propagate.Job(models, frames, 1 - frames[:1], clips.plan(8, 8.0, 4), settings, tmp_path / folder)

    return make


def test_a_later_clip_may_be_asked_for_first(job, pack):
    """Its stages make clip 0's themselves, in a new job and in one whose clip 0 lies on the disk."""
    with torch.inference_mode():
        in_order = job("in order").stages
        first = in_order.edit(0, pack("host.conditioning").ClipStart(in_order.footage.edited))
        start = pack("host.conditioning").ClipStart(first["frames"][-1:].float() / 255, first["latents"][-1:])
        second = in_order.edit(1, start)
        for folder in ("another", "another"):
            alone = job(folder)
            found = alone.stages.edit(1, start)
            assert all(torch.equal(found[n], second[n]) for n in second)
            for path in alone.store.folder.glob("edit-*"):  # clip 1's, so that the next job makes it again
                if "states" not in load_file(str(path)):
                    path.unlink()


def test_the_job_and_the_nodes_draw_alike(job, pack, loaded, frames):
    """Smooth Area Perturbation, Source and Edited Frame Conditioning, given the job's seeds, make what the job samples with."""
    seed = 5
    stages = job(seed=seed).stages
    nodes = {n.define_schema().node_id: n for m in ("inversion", "injection") for n in pack(f"nodes.{m}").NODES}
    with torch.inference_mode():
        latent = {"samples": torch.zeros(4, 4, HEIGHT // 8, WIDTH // 8)}
        node = nodes["FramePainterEditedConditioning"].execute(loaded.clip_vision, loaded.vae, 1 - frames[:1], latent, fps=8,
                                                               seed=seed + 1000).args
        own = stages._conditioning(0, pack("host.conditioning").ClipStart(stages.footage.edited))
        for a, b in zip(node, own, strict=True):
            assert torch.equal(a[0][0], b[0][0])
            assert {k: v for k, v in a[0][1].items() if k != "concat_latent_image"} == {
                k: v for k, v in b[0][1].items() if k != "concat_latent_image"}
            assert torch.equal(a[0][1]["concat_latent_image"], b[0][1]["concat_latent_image"])
        perturbed = nodes["FramePainterSARP"].execute(stages.footage.clip(0), 0.001, 0.005, seed).args
        trajectory = stages.inversion(0)
        scaled = stages.models.model.model.process_latent_in(loaded.vae.encode(perturbed[0]))
        assert torch.equal(trajectory.states[0], scaled.float())


def test_stages_of_an_earlier_version_are_taken_over_once(job, pack, loaded):
    """Under the names that version 07a463f gave: a job that it began goes on, motion LoRA's states included."""
    digest, sampled = pack("core.digest").digest, pack("host.models.earlier").sampled_digest
    presets = pack("core.training.motion_lora.presets")
    settings = {"lora": "one for all clips", "motion": presets.MotionSettings(steps=4, rank=4, precision="fp32", save_every=1)}
    with torch.inference_mode():
        whole = job(**settings)
        made = whole.run()
        store, clip = whole.store, whole.stages.footage.clip
        models = digest(sampled(loaded.model, True), loaded.vae.first_stage_model.state_dict(),
                        loaded.clip_vision.model.state_dict())
        motion = whole.stages.settings.motion
        names = {"lora": [digest(models, {"frames": clip(0)}, {**motion.identity(), "height": HEIGHT, "width": WIDTH}, motion.steps,
                                 motion.learning_rate, motion.seed, {})], "inversion": []}
        first = whole.stages.inversion(0)
        for number in range(3):
            past = {"past": first.states[-1]} if number else {}
            names["inversion"].append(digest(models, {"frames": clip(number)}, STEPS, 0.001, 0.005, 0.02, 127, 0, number, past))
        by_frames = {pack("core.inversion.trajectory").load(p).states[0].sum().item(): p for p in store.folder.glob("inversion-*")}
        order = [by_frames[whole.stages.inversion(n).states[0].sum().item()] for n in range(3)]
        for path, name in zip([*store.folder.glob("lora-*"), *order], names["lora"] + names["inversion"], strict=True):
            path.rename(store.path(path.name.split("-")[0], name))
        for path in store.folder.glob("edit-*"):
            path.unlink()
        (training,) = store.folder.glob("training-*")
        training.rename(store.folder / f"training-{names['lora'][0]}")
        again = job(**settings).run()
        assert torch.equal(again.frames, made.frames)
        assert sum("taken from the disk, kept by an earlier version" in line for line in again.stages) == 4
        assert not [line for line in again.stages if "trained" in line or "inverted" in line]
        left = {p.name for p in store.folder.glob("*.safetensors")}
        assert not left & {store.path(stage, n).name for stage in names for n in names[stage]}
        # The states, too, where the finished file is not there.
        for path in store.folder.glob("lora-*"):
            path.unlink()
        assert torch.equal(job(**settings).run().frames, made.frames)
        assert [p.name for p in store.folder.glob("training-*")] != [f"training-{names['lora'][0]}"]


def test_an_edits_noise_is_the_second_of_two_draws(pack):
    """The published code draws for both halves of the guided batch."""
    condition = pack("core.inversion.condition")
    both = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(7))
    found = condition.latent_noise(3, 5, torch.Generator().manual_seed(7))
    assert torch.equal(found, both[1:]) and not torch.equal(found, both[:1])


def test_inversions_but_the_first_leave_memory(job):
    stages, refs = job().stages, []
    with torch.inference_mode():
        for number in range(3):
            refs.append(weakref.ref(stages.inversion(number)))
        gc.collect()
        assert [ref() is not None for ref in refs] == [True, False, False]
        assert stages.inversion(0) is refs[0]()


@pytest.mark.parametrize("factor", [0.0, float("nan")])
def test_a_kept_lora_that_learned_nothing_is_made_again(job, pack, factor):
    """Earlier versions kept the zeros of a run whose steps were all skipped."""
    motion = pack("core.training.motion_lora.presets").MotionSettings(steps=2, rank=2, precision="fp32")
    first = job(lora="one for all clips", motion=motion)
    with torch.inference_mode():
        learned = first.stages.lora(0)
        (path,) = first.store.folder.glob("lora-*")
        key = path.stem.removeprefix("lora-")
        spoiled = {n: t * factor if "lora_up" in n else t for n, t in learned.items()}
        store = pack("core.video.store")
        save_file(spoiled, str(path), metadata={store.VALUES: pack("core.digest").digest(spoiled)})
        again = job(lora="one for all clips", motion=motion)
        found = again.stages.lora(0)
    assert all(torch.equal(t, found[n]) for n, t in learned.items())
    assert any("on the disk cannot be used" in line or "holds inf or NaN" in line for line in again.lines)
    assert all(torch.equal(t, again.store.get("lora", key)[n]) for n, t in learned.items())
