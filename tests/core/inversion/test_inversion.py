"""Inversion without a network that needs ComfyUI: schedule, ODE, perturbation, normality, trajectory files."""

from __future__ import annotations

import math
import os
import stat

import pytest
import torch


@pytest.fixture(scope="module")
def core(pack):
    return lambda name: pack(f"core.inversion.{name}")


# ---- schedule and ODE ------------------------------------------------------------------------------------------------


def test_levels_go_up_and_end_where_sampling_starts(core, pack):
    schedule = core("schedule")
    sigmas = pack("core.edm").karras_sigmas(25)
    levels = schedule.inversion_levels(sigmas)
    assert len(levels) == 26 and levels == sorted(levels) and levels[0] > 0
    assert levels[1:] == sigmas[-2::-1] and math.isclose(levels[0] / levels[1], levels[1] / levels[2])


def test_any_schedule(core):
    levels = core("schedule").inversion_levels
    assert levels([10.0, 3.0, 1.0]) == [1.0, 3.0, 10.0]  # the upper part of a split one has no 0 to replace
    assert levels([5.0, 0.0]) == [0.5, 5.0]
    for wrong in ([1.0], [1.0, 2.0], [1.0, 1.0, 0.0], [math.inf, 1.0], [1.0, -1.0], [math.nan, 0.0]):
        with pytest.raises(ValueError, match="noise levels"):
            levels(wrong)


def gaussian(deviation: float):
    """The exact denoiser of independent normal values: D = x s^2 / (s^2 + sigma^2)."""
    def model(x, sigma, **extra):
        s = sigma[:, None, None, None].double()
        return (x.double() * deviation**2 / (deviation**2 + s**2)).to(x)

    return model


def test_the_ode_of_a_gaussian(core, pack):
    """Closed form: x grows as sqrt(s^2 + sigma^2). Euler's error falls in proportion to the step."""
    schedule, euler = core("schedule"), core("euler")
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    errors = []
    for steps in (50, 100, 200):
        levels = torch.tensor(schedule.inversion_levels(pack("core.edm").karras_sigmas(steps, 80.0)), dtype=torch.float64)
        found = euler.invert_euler(gaussian(0.7), x, levels)
        expected = x * ((0.7**2 + levels[-1] ** 2) / (0.7**2 + levels[0] ** 2)).sqrt()
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[0] < 0.2 and all(0.4 < b / a < 0.6 for a, b in zip(errors, errors[1:], strict=False)), errors


def test_a_resumed_ode_has_the_same_bits(core):
    levels = torch.tensor(core("schedule").inversion_levels([9.0, 4.0, 2.0, 1.0, 0.3, 0.0]))
    x, states = torch.randn(2, 4, 3, 3), []
    whole = core("euler").invert_euler(gaussian(1.0), x, levels, callback=lambda step: states.append(step["x"]))
    assert torch.equal(core("euler").invert_euler(gaussian(1.0), states[3], levels, first=3), whole)


# ---- perturbation ----------------------------------------------------------------------------------------------------


def scene() -> torch.Tensor:
    """(1, 3, 24, 32): a white half, a textured half."""
    pixels = torch.ones(1, 3, 24, 32)
    pixels[..., 16:] = torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return pixels


@pytest.mark.parametrize("limits", ["inward", "clamp"])
def test_only_smooth_pixels_change_and_none_leaves_the_range(core, limits):
    sarp, pixels = core("sarp"), scene()
    out, smooth = sarp.perturb(pixels, torch.randn(pixels.shape), 0.001, 0.005, limits)
    assert smooth[0, :, :15].all() and not smooth[0, :, 16:].any()
    assert torch.equal(out[:, :, ~smooth[0]], pixels[:, :, ~smooth[0]])
    assert out.abs().max() <= 1.0


def test_clamping_loses_half_of_the_noise_on_white(core):
    sarp, pixels = core("sarp"), torch.ones(1, 3, 64, 64)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    still = {limits: float((sarp.perturb(pixels, noise, limits=limits)[0] == 1.0).float().mean())
             for limits in ("inward", "clamp")}
    assert 0.48 < still["clamp"] < 0.52 and still["inward"] < 0.01


def test_inward_noise_keeps_its_size(core):
    sarp, pixels = core("sarp"), -torch.ones(1, 3, 64, 64)
    noise = torch.randn(pixels.shape)
    out, _ = sarp.perturb(pixels, noise, scale=0.01)
    assert torch.allclose((out + 1.0).abs(), 0.01 * noise.abs(), atol=1e-6)


def test_the_rim_of_a_constant_area(core):
    """As released, it counts as an edge, unless the area is as grey as what lies beyond."""
    sarp = core("sarp")
    rim = torch.ones(10, 12, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    for value, expected in ((0.8, ~rim), (0.0, torch.ones_like(rim))):
        flat = torch.full((1, 3, 10, 12), value)
        assert torch.equal(sarp.gradient(flat, "zero")[0] <= 0.001, expected)
        assert (sarp.gradient(flat, "repeat") < 1e-6).all()


def test_a_clips_frame_0_gets_three_noises(core):
    clip = torch.full((2, 3, 8, 8), 0.3)
    found = core("sarp").perturb_clip(clip, torch.randn(4, 3, 8, 8))
    three = [found.first_frame[0], found.key_frame[0], found.clip[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(three) for b in three[i + 1:])
    assert found.smooth.shape == (4, 8, 8)


def test_quantisation_cuts_off(core):
    condition = core("condition")
    pixels = torch.tensor([-1.0, -0.999, 0.0, 0.999, 1.0])
    assert torch.equal((condition.quantise(pixels) + 1) / 2 * 255, torch.tensor([0.0, 0.0, 127.0, 254.0, 255.0]))


# ---- normality -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_statistic_is_scipys(core, draw):
    anderson = pytest.importorskip("scipy.stats").anderson
    values = draw(5000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = anderson(values.numpy()).statistic
    assert core("normality").anderson_darling(values).statistic == pytest.approx(float(expected), rel=1e-6, abs=1e-8)


def test_statistic_knows_noise_from_a_constant_patch(core):
    statistic = core("normality").anderson_darling
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    noise = statistic(values)
    assert noise.statistic < core("normality").CRITICAL_5_PERCENT
    assert statistic(values * 3 + 5).statistic == pytest.approx(noise.statistic, rel=1e-4)  # neither mean nor size count
    values[:12, :12] = 0.0
    assert statistic(values).statistic > 5 * noise.statistic
    assert statistic(torch.zeros(9)).statistic == math.inf and statistic(torch.tensor([1.0, math.nan])).statistic == math.inf


def test_histogram_is_a_density(core):
    values = torch.randn(4000)
    density = core("normality").histogram(values, 40, 4.0)
    assert float(density.sum()) * 8 / 40 == pytest.approx(1.0, rel=1e-4) and 0.3 < float(density.max()) < 0.5
    picture = core("plot").normality_picture(values, "clip")
    assert picture.shape == (1, 300, 640, 3) and 0 <= picture.min() < picture.max() <= 1
    assert core("plot").normality_picture(torch.zeros(4)).shape == (1, 300, 640, 3)


# ---- trajectory files ------------------------------------------------------------------------------------------------


@pytest.fixture
def found(core):
    trajectory = core("trajectory")
    source = trajectory.SourceConditioning(torch.randn(1, 1, 6), torch.randn(3, 4, 5, 7),
                                           {"fps": 9.0, "motion_bucket_id": 127.0, "augmentation_level": 0.02})
    return trajectory.Trajectory(torch.randn(4, 3, 4, 5, 7), (7.0, 2.0, 0.1, 0.0), source, "model digest")


def test_a_saved_trajectory_comes_back(core, found, tmp_path):
    path = core("trajectory").save(tmp_path / "new" / "clip.safetensors", found)
    again = core("trajectory").load(path)
    assert torch.equal(again.states, found.states) and again.sigmas == found.sigmas and again.model == found.model
    assert again.conditioning.digest() == found.conditioning.digest()
    assert torch.equal(again.inverted, found.states[-1] / math.sqrt(50.0))
    assert [p.name for p in path.parent.iterdir()] == ["clip.safetensors"]


def test_damaged_files_are_named(core, found, tmp_path):
    trajectory = core("trajectory")
    path = trajectory.save(tmp_path / "clip.safetensors", found)
    whole = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        trajectory.load(tmp_path / "none.safetensors")
    for data in (whole[:-10], whole[:40], b"", b"not safetensors at all", whole[:8] + b"x" * (len(whole) - 8)):
        path.write_bytes(data)
        with pytest.raises(trajectory.TrajectoryError, match="damaged"):
            trajectory.load(path)
    path.write_bytes(whole[:-4] + bytes(4 * [0x41]))
    with pytest.raises(trajectory.TrajectoryError, match="have the digest .*, the header says"):
        trajectory.load(path)


def test_a_header_without_its_digests(core, found, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    trajectory = core("trajectory")
    path = trajectory.save(tmp_path / "clip.safetensors", found)
    with safe_open(str(path), framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    for missing, message in (("states", "the header says nothing"), ("model", "damaged"), ("sigmas", "damaged")):
        save_file(tensors, str(path), metadata={k: v for k, v in metadata.items() if k != missing})
        with pytest.raises(trajectory.TrajectoryError, match=message):
            trajectory.load(path)


def test_other_safetensors_files_are_refused(core, tmp_path):
    from safetensors.torch import save_file

    save_file({"states": torch.zeros(1)}, str(tmp_path / "lora.safetensors"))
    with pytest.raises(core("trajectory").TrajectoryError, match="is no trajectory"):
        core("trajectory").load(tmp_path / "lora.safetensors")


def test_a_failing_disk_leaves_nothing(pack, core, found, tmp_path, monkeypatch):
    trajectory = core("trajectory")

    def full(tensors, name, metadata=None):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trajectory, "save_file", full)
    with pytest.raises(pack("core.atomic").WriteError, match="No space left on device.*make room"):
        trajectory.save(tmp_path / "clip.safetensors", found)
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_named(pack, core, found, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        if os.access(folder, os.W_OK):  # root may write anywhere: a file in the folder's place stops it, too
            folder.rmdir()
            folder.write_text("")
        with pytest.raises(pack("core.atomic").WriteError, match="clip.safetensors' could not be written: "):
            core("trajectory").save(folder / "clip.safetensors", found)
    finally:
        folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("sigmas, is_one", [([9, 5, 2, 0], True), ([5, 2], True), ([9, 5, 0], True), ([9.00001, 5], True),
                                            ([9.1, 5], False), ([9, 2], False), ([9, 5, 2, 0, 0], False), ([5, 0, 2], False)])
def test_a_stretch_of_a_schedule(pack, sigmas, is_one):
    assert pack("core.inversion.schedule").is_stretch(sigmas, (9.0, 5.0, 2.0, 0.0), 1e-4) is is_one
