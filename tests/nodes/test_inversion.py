"""I2VEdit's nodes at the edges of their inputs, and the whole chain through them."""

from __future__ import annotations

import comfy.ops
import folder_paths
import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.golden import relative

FRAMES, HEIGHT, WIDTH, STEPS = 3, 32, 48, 3


@pytest.fixture(scope="module")
def nodes(pack):
    found = {node.define_schema().node_id: node for node in pack("nodes").NODES}

    def call(name: str, **inputs):
        node = found[f"FramePainter{name}"]
        node.hidden = type("Hidden", (), {"unique_id": None})()
        with torch.inference_mode():
            return node.execute(**inputs).args

    return call


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    images = torch.rand(FRAMES, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    images[:, :, :24] = 1.0
    return images


@pytest.fixture
def folders(tmp_path, monkeypatch):
    for kind in ("output", "input", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    return tmp_path


@pytest.fixture(scope="module")
def source(nodes, loaded, clip):
    """What Invert EDM takes, and gives: latent, trajectory, schedule."""
    positive, latent = nodes("SourceConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, images=clip)
    inverted = nodes("InvertEDM", model=loaded.model, positive=positive, latent=latent, steps=STEPS)
    return positive, latent, inverted


def test_perturbation(nodes, clip):
    images, first, key, smooth = nodes("SARP", images=clip, threshold=0.001, noise_scale=0.005, seed=3)
    assert images.shape == clip.shape and first.shape == key.shape == (1, HEIGHT, WIDTH, 3)
    assert smooth.shape == (FRAMES, HEIGHT, WIDTH) and smooth[:, :, :23].min() == 1 and smooth[:, :, 24:].max() == 0
    changed = images - clip
    assert changed[:, :, 24:].abs().max() == 0 and 0.001 < changed[:, :, :23].std() < 0.003
    assert torch.equal(images, nodes("SARP", images=clip, threshold=0.001, noise_scale=0.005, seed=3)[0])
    assert not torch.equal(images, nodes("SARP", images=clip, threshold=0.001, noise_scale=0.005, seed=4)[0])
    assert torch.equal(nodes("SARP", images=clip, threshold=0.001, noise_scale=0.0, seed=3)[0], clip)
    released = nodes("SARP", images=clip, threshold=0.001, noise_scale=0.005, seed=3, limits="clamp (released)",
                     border="zero (released)")
    assert released[3][:, 0].max() == 0 and 0.4 < float((released[0][:, 1:-1, 1:20] == 1.0).float().mean()) < 0.6
    with pytest.raises(ValueError, match="limits is 'cut'; choose one of mirror inward"):
        nodes("SARP", images=clip, threshold=0.001, noise_scale=0.005, seed=3, limits="cut")


def test_pictures_of_one_latent_are_refused(nodes, loaded, clip):
    with pytest.raises(ValueError, match="the first frame is 8 x 8 pixels, too small for the VAE. Make it at least 16 pixels"):
        nodes("SourceConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, images=clip[:, :8, :8])


def test_source_conditioning(nodes, loaded, clip, source):
    positive, latent, _ = source
    assert latent["samples"].shape == (FRAMES, 4, HEIGHT // 8, WIDTH // 8)
    image = positive[0][1]["concat_latent_image"]
    assert image.shape == latent["samples"].shape and torch.equal(image[0], image[1])  # no copies given
    other = nodes("SourceConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, images=clip,
                  key_frame=1 - clip[:1])[0][0][1]["concat_latent_image"]
    assert torch.equal(other[1:], image[1:]) and not torch.equal(other[0], image[0])
    with pytest.raises(ValueError, match="Source Conditioning: 'images' are 45 x 32 pixels.*multiples of 8.*48 x 32"):
        nodes("SourceConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, images=clip[:, :, :45])
    with pytest.raises(ValueError, match="'first_frame' is 40 x 32 pixels, 'images' are 48 x 32"):
        nodes("SourceConditioning", clip_vision=loaded.clip_vision, vae=loaded.vae, images=clip, first_frame=clip[:1, :, :40])


def test_invert(pack, nodes, loaded, source):
    positive, latent, (start, trajectory, schedule) = source
    assert trajectory.steps == STEPS and len(schedule) == STEPS + 1 and schedule[-1] == 0
    assert torch.allclose(start["samples"] * 0.18215, trajectory.states[-1], rtol=1e-5)
    sigmas = torch.tensor([20.0, 3.0, 0.5])
    found = nodes("InvertEDM", model=loaded.model, positive=positive, latent=latent, steps=99, sigmas=sigmas)[1]
    assert found.sigmas == (20.0, 3.0, 0.5) and found.steps == 2
    with pytest.raises(ValueError, match="Invert EDM: the 'model' input is a .* model"):
        sd15 = type("Patcher", (), {"model": torch.nn.Module()})()
        sd15.model.diffusion_model = comfy.ops.manual_cast.Linear(2, 2)
        nodes("InvertEDM", model=sd15, positive=positive, latent=latent, steps=2)


def test_a_trajectory_goes_through_a_file(nodes, source, folders):
    trajectory = source[2][1]
    nodes("SaveTrajectory", trajectory=trajectory, filename_prefix="trajectories/deep/clip")
    (file,) = (folders / "output").rglob("*.safetensors")
    latent, again, schedule = nodes("LoadTrajectory", file="deep/" + file.name)
    assert torch.equal(again.states, trajectory.states) and torch.equal(latent["samples"], source[2][0]["samples"])
    assert torch.equal(schedule, source[2][2])
    with pytest.raises(FileNotFoundError, match="Load Trajectory: 'none.safetensors' is in none of the folders"):
        nodes("LoadTrajectory", file="none.safetensors")
    with pytest.raises(ValueError, match="lies outside of the folder"):
        nodes("LoadTrajectory", file="../../secret.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="Load Trajectory: .*is damaged"):
        nodes("LoadTrajectory", file="deep/" + file.name)


def test_saved_trajectories_are_listed(pack, nodes, source, folders):
    nodes("SaveTrajectory", trajectory=source[2][1], filename_prefix="trajectories/clip")
    (folders / "output" / "trajectories" / "abc.partial.safetensors").write_text("")
    assert pack("host.outputs").saved_names("trajectories") == ["clip_00001_.safetensors"]


def test_saving_where_one_may_not(nodes, source, folders):
    (folders / "output" / "trajectories").write_text("a file in the folder's place")
    with pytest.raises(ValueError, match="Save Trajectory: "):
        nodes("SaveTrajectory", trajectory=source[2][1], filename_prefix="trajectories/clip")


def test_a_full_disk_leaves_no_trajectory(pack, nodes, source, folders, monkeypatch):
    def full(tensors, name, metadata=None):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack("core.inversion.trajectory"), "save_file", full)
    with pytest.raises(ValueError, match="Save Trajectory: .*No space left on device.*make room"):
        nodes("SaveTrajectory", trajectory=source[2][1], filename_prefix="trajectories/clip")
    assert [p for p in folders.rglob("*") if p.is_file()] == []


def test_an_unfinished_or_foreign_file_is_no_trajectory(pack, nodes, source, folders):
    import dataclasses

    from safetensors.torch import save_file

    folder, trajectory = folders / "input" / "trajectories", source[2][1]
    pack("core.inversion.trajectory").save(folder / "half.safetensors",
                                           dataclasses.replace(trajectory, states=trajectory.states[:2]))
    with pytest.raises(ValueError, match=f"Load Trajectory: 'half.safetensors' has 1 of {STEPS} steps"):
        nodes("LoadTrajectory", file="half.safetensors")
    save_file({"weight": torch.zeros(2)}, str(folder / "lora.safetensors"))
    with pytest.raises(ValueError, match="Load Trajectory: .*lora.safetensors' is no trajectory"):
        nodes("LoadTrajectory", file="lora.safetensors")


@pytest.mark.parametrize("resumable", [False, True])
def test_a_cancelled_inversion(pack, nodes, loaded, source, folders, monkeypatch, resumable):
    """Leaves no files, or the one that it goes on from; and a model as it was."""
    import comfy.model_management as mm

    positive, latent, (_, trajectory, _) = source
    inputs = {"model": loaded.model, "positive": positive, "latent": latent, "steps": STEPS, "resumable": resumable}
    before = [repr(x) for x in (loaded.model.model_options, loaded.model.object_patches, loaded.model.patches)]
    host, seen = pack("host.inversion.edm"), []
    whole = host.invert_euler

    def stopped(model, x, levels, extra=None, callback=None, first=0):
        def stop(step):
            callback(step)
            seen.append(step["i"])
            if len(seen) == 1:
                mm.interrupt_current_processing()

        return whole(model, x, levels, extra, stop, first)

    monkeypatch.setattr(host, "invert_euler", stopped)
    with pytest.raises(mm.InterruptProcessingException):
        nodes("InvertEDM", **inputs)
    assert len([p for p in folders.rglob("*") if p.is_file()]) == resumable
    assert before == [repr(x) for x in (loaded.model.model_options, loaded.model.object_patches, loaded.model.patches)]
    assert torch.equal(nodes("InvertEDM", **inputs)[1].states, trajectory.states)
    assert seen[1:] == list(range(1 if resumable else 0, STEPS))
    assert [p for p in folders.rglob("*") if p.is_file()] == []


def schedules():
    from comfy_extras import nodes_custom_sampler as core

    return {"one step": core.KarrasScheduler.execute(1, 700.0, 0.002, 7.0).args[0],
            "two steps": core.KarrasScheduler.execute(2, 700.0, 0.002, 7.0).args[0],
            "exponential": core.ExponentialScheduler.execute(6, 80.0, 0.01).args[0],
            "not down to 0": torch.tensor([30.0, 7.0, 0.9, 0.2])}


@pytest.mark.parametrize("name", ["one step", "two steps", "exponential", "not down to 0"])
def test_any_schedule(nodes, loaded, source, name):
    positive, latent, _ = source
    sigmas = schedules()[name]
    start, trajectory, schedule = nodes("InvertEDM", model=loaded.model, positive=positive, latent=latent, steps=7,
                                        sigmas=sigmas)
    assert torch.equal(schedule, sigmas) and trajectory.reached == len(sigmas) - 1
    assert sorted(trajectory.levels) == trajectory.levels and trajectory.levels[0] > 0
    (matched,) = nodes("MatchAttention", model=loaded.model, trajectory=trajectory, preset="local edit", threshold=0.35,
                       threshold_last=0.35)
    assert torch.isfinite(sampled(matched, positive, positive, start, schedule, 1.0)["samples"]).all()


def test_normality(nodes):
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    statistic, pictures, table = nodes("Normality", latent={"samples": noise * 3842.0})
    assert statistic < 0.8 and pictures.shape == (5, 300, 640, 3) and table.count("channel") == 4
    assert "a deviation of 3843 is 1 if its schedule starts at 700" in table
    noise[:, 2] = noise[:, 2].sign()
    worse, _, table = nodes("Normality", latent={"samples": noise})
    rows = {line.split(":")[0]: float(line.split("Darling ")[1].split(",")[0]) for line in table.splitlines()[:5]}
    assert worse > 10 and rows["channel 2"] > 100 and rows["channel 1"] < 2


def test_normality_of_an_inversion_does_not_know_its_scale(pack, nodes, source):
    """The latent is at full noise, the paper's is divided by sqrt(sigma_0^2 + 1): the same number."""
    start, trajectory, _ = source[2]
    expected = pack("core.inversion.normality").anderson_darling(trajectory.inverted)
    statistic, _, table = nodes("Normality", latent=start)
    assert statistic == pytest.approx(expected.statistic, rel=1e-3, abs=1e-4)
    deviation = float(table.split("deviation ")[1].split(",")[0])
    assert deviation / 3843 == pytest.approx(expected.deviation, rel=2e-3)


def test_edited_conditioning(nodes, loaded, clip, source):
    inputs = {"clip_vision": loaded.clip_vision, "vae": loaded.vae, "latent": source[1]}
    positive, negative = nodes("EditedConditioning", image=clip[:1], **inputs)
    assert positive[0][1]["fps"] == 7 and float(negative[0][1]["concat_latent_image"].abs().max()) == 0
    other = nodes("EditedConditioning", image=clip[:1], seed=1, **inputs)[0]
    noise = other[0][1]["concat_latent_image"] - positive[0][1]["concat_latent_image"]
    assert 0.01 < float(noise.std()) < 0.06
    with pytest.raises(ValueError, match="'image' is 32 x 32 pixels, the clip 48 x 32"):
        nodes("EditedConditioning", image=clip[:1, :, :32], **inputs)


def sampled(model, positive, negative, latent, sigmas, cfg=2.0):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    with torch.inference_mode():
        return SamplerCustom.execute(model, False, 0, cfg, positive, negative, comfy.samplers.sampler_object("euler"), sigmas,
                                     latent).args[0]


@pytest.mark.parametrize("place", ["RAM", "disk"])
def test_the_whole_chain(nodes, loaded, clip, source, folders, place):
    start, trajectory, schedule = source[2]
    positive, negative = nodes("EditedConditioning", image=1 - clip[:1], clip_vision=loaded.clip_vision, vae=loaded.vae,
                               latent=source[1])
    preset = {"trajectory": trajectory, "preset": "local edit", "threshold": 0.35, "threshold_last": 0.35}
    (matched,) = nodes("MatchAttention", model=loaded.model, branches="one after another", **preset)
    out = sampled(matched, positive, negative, start, schedule)
    mask, picture = nodes("DifferenceMask", model=matched, positive=positive, latent=out, layers="all", values="difference")
    assert mask.shape == (FRAMES, HEIGHT, WIDTH) and 0 < mask.max() < 1 and picture.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert nodes("DifferenceMask", model=matched, positive=positive, latent=out, layers="middle", values="weight",
                 normalise=True)[0].max() == 1
    with pytest.raises(ValueError, match="no layers 'third on the way down'"):
        nodes("DifferenceMask", model=matched, positive=positive, latent=out, layers="third on the way down",
              values="difference")
    with pytest.raises(ValueError, match="'model' has no Match Attention"):
        nodes("DifferenceMask", model=loaded.model, positive=positive, latent=out, layers="all", values="weight")
    (record,) = nodes("RecordAttention", model=loaded.model, trajectory=trajectory, place=place, precision="fp32", budget_gb=1.0)
    (recorded,) = nodes("MatchAttention", model=loaded.model, record=record, **preset)
    assert torch.equal(sampled(recorded, positive, negative, start, schedule)["samples"], out["samples"])
    assert len(list((folders / "temp").iterdir())) == (1 if place == "disk" else 0)
    record.close()


def test_recording_where_one_may_not(nodes, loaded, source, folders):
    (folders / "temp").rmdir()
    (folders / "temp").write_text("a file in the folder's place")
    with pytest.raises(RuntimeError, match="Record Attention: the folder .*cannot be made"):
        nodes("RecordAttention", model=loaded.model, trajectory=source[2][1], place="disk", precision="fp16", budget_gb=1.0)


def test_presets_and_masks(pack, nodes, loaded, source):
    trajectory, read = source[2][1], pack("host.attention.injection").read_out_of
    numbers = {"trajectory": trajectory, "threshold": 0.35, "threshold_last": 0.6}

    def plan(**inputs):
        return read(nodes("MatchAttention", model=loaded.model, **numbers, **inputs)[0])[1]

    betas = {preset: plan(preset=preset, beta_1=0.1, beta_2=0.2).settings.betas
             for preset in ("local edit", "global style", "large shape change", "custom")}
    assert betas == {"local edit": (0.5, 0.8), "global style": (0.8, 0.9), "large shape change": (0.4, 0.5),
                     "custom": (0.1, 0.2)}
    assert plan(preset="custom").settings.thresholds == (0.35, 0.6)
    assert plan(preset="custom", stay_mask=torch.zeros(1, 64, 64)).masks.stay is None  # Load Image's empty mask
    assert plan(preset="custom", stay_mask=torch.ones(1, 64, 96)).masks.stay.shape == (1, 64, 96)
    with pytest.raises(ValueError, match="'change_mask' is 64 x 64 pixels, the clip 48 x 32"):
        plan(preset="custom", change_mask=torch.ones(1, 64, 64))
    with pytest.raises(ValueError, match="beta_1 0.9 is after beta_2 0.2"):
        plan(preset="custom", beta_1=0.9, beta_2=0.2)
    with pytest.raises(ValueError, match="preset is 'best'"):
        plan(preset="best")


def test_the_host_samples_from_it_unguided_as_well(nodes, loaded, source):
    """KSampler (Advanced) and SamplerCustom start from the same state."""
    import nodes as core

    start, trajectory, schedule = source[2]
    with torch.inference_mode():
        positive = source[0]
        (other,) = core.KSamplerAdvanced().sample(loaded.model, "disable", 0, STEPS, 1.0, "euler", "karras", positive, positive,
                                                  start, 0, 10000, "disable")
    assert relative(sampled(loaded.model, positive, positive, start, schedule, 1.0)["samples"], other["samples"]) < 1e-4
