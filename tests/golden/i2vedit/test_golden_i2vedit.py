"""The published I2VEdit code against this pack on ComfyUI's own SVD UNet: every case, within the README's tolerances."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from framepainter_tests.golden import Case, cases, system_folder

CASES = cases("i2vedit")
SCALE = 0.18215  # of SVD's latents
# Cases of other parts of the method, which other tests run.
ELSEWHERE = {"clip_split", "motion_lora", "motion_lora_training_step", "skip_interval"}
STAGES = ("down_blocks", "mid_block", "up_blocks")


@pytest.fixture(scope="module")
def build(pack):
    """A case's UNet as ComfyUI runs it. The cases were computed with the host's own GroupNorm epsilons."""
    loaded = {}

    def load(case: Case):
        key = (case.info["salt"], case.info["networks"]["unet"]["manifest"])
        if key not in loaded:
            tensors = case.network("unet")
            names = pack("core.weights.diffusers_svd").to_comfy(tensors)
            tensors = {names[n]: t for n, t in tensors.items()}
            heads = case.info["config"]["unet"]["num_attention_heads"]
            width = case.info["config"]["unet"]["block_out_channels"][0] // heads[0]
            loaded[key] = pack("host.weights.building").build_unet(tensors, torch.float32, width, diffusers_epsilon=False)
        return loaded[key]

    return load


def check(found: torch.Tensor, expected: torch.Tensor, case: Case, what: str) -> None:
    """Within the case's own tolerance; a tensor with a leading step axis is checked step by step by the caller."""
    tolerance = case.info["tolerance"]
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)} against {tuple(expected.shape)}"
    rms = float((found - expected).norm() / expected.norm())
    assert rms <= tolerance["rms_relative"], f"{what}: {rms:.2e}"
    if "max_over_rms" in tolerance:
        most = float((found - expected).abs().max() / expected.pow(2).mean().sqrt())
        assert most <= tolerance["max_over_rms"], f"{what}: {most:.2e}"


def schedule(model, steps: int) -> torch.Tensor:
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", steps)


def source_positive(pack, case: Case) -> list:
    t, p = case.tensors, case.info["parameters"]
    frames = t["source_latents"].shape[1]
    image = pack("core.inversion.condition").source_condition(t["source_key_latents"], t["source_first_latents"], frames)
    ids = t["added_time_ids"][0].tolist() if "added_time_ids" in t else [8, 127, 0.02]
    if "fps_id" in p and "added_time_ids" in t:
        assert ids[0] == p["fps_id"]
    host = pack("host.conditioning")
    return host.svd_conditioning(t["source_image_embeds"].reshape(1, 1, -1), image, host.MicroConds(*ids))[0]


def given_trajectory(pack, model, case: Case):
    """The trajectory that a case brings along, as Invert EDM would have given it."""
    trajectory = pack("core.inversion.trajectory")
    t = case.tensors
    sigmas = schedule(model, case.info["parameters"]["steps"])
    reached = t["inverted_latents"] * (sigmas[0] ** 2 + 1).sqrt()
    states = torch.cat([t["source_trajectory"], reached])
    source = pack("host.source").source_of(source_positive(pack, case), len(states[0]))
    return trajectory.Trajectory(states, tuple(sigmas.tolist()), source, pack("host.models.identity").model_digest(model, True))


def sarp(case: Case, pack, build) -> None:
    module = pack("core.inversion.sarp")
    clip, noise = case.tensors["video"][0], case.tensors["noise"][0]
    for name, p in case.info["parameters"].items():
        letter = name[-1]
        found = module.perturb_clip(clip, noise, p["threshold"], p["noise_scale"], "clamp", "zero")
        assert torch.equal(found.smooth[:, None].expand(-1, 3, -1, -1), case.tensors[f"mask_{letter}"][0].bool())
        for part, pixels in (("first_frame", found.first_frame), ("key_frame", found.key_frame), ("clip", found.clip)):
            assert (pixels - case.tensors[f"{part}_{letter}"][0]).abs().max() <= case.info["tolerance"]["tensors"]["max_abs"]


def inversion_schedule(case: Case, pack, build) -> None:
    schedule, edm = pack("core.inversion.schedule"), pack("core.edm")

    def same(found, expected) -> None:
        found, expected = torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(expected, dtype=torch.float64)
        assert ((found - expected).abs() <= case.info["tolerance"]["relative"] * expected.abs().clamp_min(1e-12)).all()

    for name, p in case.info["parameters"].items():
        steps = name.removeprefix("steps_")
        t = {k.removesuffix(f"_{steps}"): v for k, v in case.tensors.items() if k.endswith(f"_{steps}")}
        sigmas = torch.tensor(pack("core.edm").karras_sigmas(int(steps)))
        same(sigmas, t["sampling_sigmas"])
        same(edm.network_timestep(sigmas[:-1]), t["sampling_timesteps"])
        levels = schedule.inversion_levels(sigmas.tolist())
        same(levels[:-1], t["inversion_sigma"])
        same(levels[1:], t["inversion_sigma_next"])
        same(edm.network_timestep(torch.tensor(levels[:-1])), t["inversion_timestep"])
        same(levels[0], p["substituted_sigma"])
        same((sigmas[0] ** 2 + 1).sqrt(), p["final_divisor"])


class ToyVAE:
    """The case's encoder: 8 x 8 means, then a matrix; takes pixels as the host's VAE does."""

    def __init__(self, matrix: torch.Tensor, bias: torch.Tensor):
        self.matrix, self.bias = matrix, bias

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1) * 2 - 1, 8)
        return torch.einsum("oc,bchw->bohw", self.matrix, x) + self.bias[:, None, None]


def edit_conditioning(case: Case, pack, build, monkeypatch) -> None:
    host, core, images = pack("host.conditioning"), pack("core.inversion.condition"), pack("core.images")
    t, p, limit = case.tensors, case.info["parameters"], case.info["tolerance"]["max_abs"]
    vae, seen = ToyVAE(t["encoder_matrix"], t["encoder_bias"]), []
    monkeypatch.setattr(host, "clip_embedding", lambda clip_vision, picture: seen.append(picture) or torch.zeros(1, 1, 4))

    def same(found, expected) -> None:
        assert found.shape == expected.shape and (found - expected).abs().max() <= limit

    def picture(pixels):
        return ((pixels + 1) / 2).movedim(1, -1)

    same(core.quantise(t["key_image"]), t["key_quantised"])
    clip = picture(t["first_image"]).expand(p["frames"], -1, -1, -1)
    pictures = pack("core.inversion.sarp").Pictures(clip, picture(t["first_image"]), picture(t["key_image"]))
    positive, latents = host.source_conditioning(None, vae, pictures, host.MicroConds(8, 127, p["level"]), t["pixel_noise"])
    image = positive[0][1]["concat_latent_image"]
    same(image[:1], t["inversion_key_latents"])
    same(image[1:], t["inversion_first_latents"].expand(p["frames"] - 1, -1, -1, -1))
    same(latents, vae.encode(clip))  # the clip itself is neither quantised nor noisy
    same(seen[0] * 2 - 1, core.quantise(t["first_image"]).movedim(1, -1))  # CLIP sees the first frame without noise
    assert positive[0][1]["fps"] == 9 and positive[0][1]["augmentation_level"] == p["level"]  # the host takes one off fps

    def halves(positive, negative):
        parts = [c[0][1]["concat_latent_image"].expand(p["frames"], -1, -1, -1) for c in (negative, positive)]
        return torch.stack(parts)

    wanted = t["edited_image_latents"]
    encoder, numbers = SimpleNamespace(encode=lambda pixels: wanted), host.MicroConds(6, 127, p["level"])
    edited = host.edited_conditioning(None, encoder, host.ClipStart(picture(t["key_image"])), numbers, t["latent_noise"])
    same(halves(*edited), t["editing_condition_clip0"])
    assert edited[0][0][1]["fps"] == 7 and float(edited[1][0][0].abs().max()) == 0.0
    carried = host.ClipStart(picture(t["key_image"]), t["previous_last_latent"][0] / SCALE)
    later = host.edited_conditioning(None, encoder, carried, numbers, t["latent_noise"])
    same(halves(*later), t["editing_condition_later"])
    same(images.clip_pixels(t["clip_image"].movedim(1, -1), 224, (0.0,) * 3, (1.0,) * 3), t["clip_resized"])


def edm_inversion(case: Case, pack, build) -> None:
    inversion = pack("host.inversion.edm")
    model, t = build(case), case.tensors
    seen = []

    def watched(apply_model, args):
        def network(executor, x, *rest, **kwargs):
            out = executor(x, *rest, **kwargs)
            seen.append((x.clone(), out.clone()))
            return out

        import comfy.patcher_extension

        options = {**args["c"]["transformer_options"]}
        comfy.patcher_extension.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, network, options)
        return apply_model(args["input"], args["timestep"], **{**args["c"], "transformer_options": options})

    spied = model.clone()
    spied.set_model_unet_function_wrapper(watched)
    sigmas = schedule(model, case.info["parameters"]["steps"])
    found = inversion.invert(spied, source_positive(pack, case), {"samples": t["source_latents"][0] / SCALE}, sigmas)
    assert len(found.states) == len(t["trajectory"]) and len(seen) == found.steps
    for i, expected in enumerate(t["trajectory"]):
        check(found.states[i], expected, case, f"state {i}")
    check(found.inverted, t["inverted_latents"][0], case, "inverted")
    check(seen[0][0], t["network_input_step0"][0], case, "input")
    check(seen[0][1], t["network_output_step0"][0], case, "output")
    check(seen[-1][1], t["network_output_last"][0], case, "last output")
    start = inversion.start_latent(found)["samples"] * SCALE / (sigmas[0] ** 2 + 1).sqrt()
    check(start, t["inverted_latents"][0], case, "LATENT")


def attention_record(case: Case, pack, build) -> None:
    inversion, record, names = pack("host.inversion.edm"), pack("host.attention.record"), pack("core.weights.diffusers_svd")
    model, t, p = build(case), case.tensors, case.info["parameters"]
    trajectory = inversion.invert(model, source_positive(pack, case), {"samples": t["source_latents"][0] / SCALE},
                                  schedule(model, p["steps"]))
    kept = {}

    def each(step, features):
        kept[step] = features
        return True

    record.source_features(model, trajectory, [p["recorded_step"]], each)
    features = kept[p["recorded_step"]]
    table = {a: b for a, b, kind in names.module_table(names.layout_from_comfy(model.model.diffusion_model.state_dict()))
             if kind == "attention"}
    visited = []
    for module, kind, _, _, shape in case.info["tables"]["visit_order"]["rows"]:
        site, _, block = module.removesuffix(".0.attn1").rpartition(".")
        path = f"{table[site]}.{'transformer_blocks' if kind == 'spatial' else 'time_stack'}.0"
        visited += [f"q|{path}", f"k|{path}"] if kind == "spatial" else [f"p|{path}"]
        for name in ("q", "k") if kind == "spatial" else ("p",):
            found = features[f"{name}|{path}"]
            heads = shape[1]
            shown = found.unflatten(-1, (heads, -1)).transpose(1, 2) if kind == "spatial" else found
            assert list(shown.shape) == shape
            golden = t.get(f"{ {'q': 'q', 'k': 'k', 'p': 'probs'}[name] }|{module}")
            if golden is not None:
                check(shown, golden, case, f"{name} of {module}")
    assert list(features) == visited  # in running order, and nothing else
    sites = pack("core.attention.sites").attention_sites(names.layout_from_comfy(model.model.diffusion_model.state_dict()))
    counts = {stage: sum(s.stage == stage for s in sites) for stage in ("down", "mid", "up")}
    assert counts == case.info["tables"]["lists"]["lengths"]


def sample_matched(pack, model, case: Case, watch=None):
    """Core's guidance and sampler on a matched model: guided predictions, and states after each step."""
    import comfy.sample
    import comfy.samplers
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    t, p = case.tensors, case.info["parameters"]
    (model,) = VideoLinearCFGGuidance().patch(model, p["guidance_min"])
    if watch is not None:
        model.set_model_unet_function_wrapper(watch)
    image = pack("core.inversion.condition").edit_condition(t["edited_image_latents"], t["augmentation_noise"], 0.02)
    host = pack("host.conditioning")
    positive, negative = host.svd_conditioning(t["edited_image_embeds"].reshape(1, 1, -1), image,
                                               host.MicroConds(p["fps_id"], p.get("motion_bucket", 127), 0.02))
    sigmas = schedule(model, p["steps"])
    start = t["inverted_latents"][0] * (sigmas[0] ** 2 + 1).sqrt() / SCALE
    denoised, states = [], []

    def callback(i, x0, x, total):
        denoised.append(x0.clone())
        states.append(x.clone())

    out = comfy.sample.sample(model, torch.zeros_like(start), p["steps"], p["guidance_max"], "euler", "karras", positive,
                              negative, start, disable_noise=True, callback=callback, disable_pbar=True)
    return denoised, [*states[1:], out * SCALE]


def compare_run(found, case: Case, suffix: str) -> None:
    denoised, states = found
    assert len(denoised) == len(case.tensors[f"latents_{suffix}"])
    for i, (x0, x) in enumerate(zip(denoised, states, strict=True)):
        check(x0, case.tensors[f"pred_original_{suffix}"][i], case, f"prediction {suffix} {i}")
        check(x, case.tensors[f"latents_{suffix}"][i], case, f"latents {suffix} {i}")


def _first_outputs(seen: list):
    """The network's raw outputs of the first step by conditioning group, from what the host makes of them."""
    def watch(apply_model, args):
        denoised = apply_model(args["input"], args["timestep"], **args["c"])
        groups = list(args["cond_or_uncond"])
        sigma = args["timestep"].double()[:, None, None, None]
        if len(dict(seen)) < 2 and float(sigma.max()) > 600:
            x = args["input"].double()
            v = (x / (sigma**2 + 1) - denoised.double()) * (sigma**2 + 1).sqrt() / sigma
            seen.extend(zip(groups, v.chunk(len(groups)), strict=True))
        return denoised

    return watch


def attention_matched_sampling(case: Case, pack, build) -> None:
    matching, injection_run = pack("host.attention.injection"), pack("host.attention.injection_run")
    model, t, p = build(case), case.tensors, case.info["parameters"]
    trajectory = given_trajectory(pack, model, case)
    edit = model
    if "lora" in case.info["networks"]:
        edit = with_lora(pack, model, case, p["lora_scale"])
    settings = [(name[-1], p[name]) for name in p if name.startswith("setting_")] or [("a", p)]
    for letter, s in settings:
        for branches in ("one after another", "together") if letter == settings[0][0] else ("one after another",):
            chosen = injection_run.Settings(tuple(s["mask_thr"]), tuple(s["temporal_step_thr"]), branches=branches)
            matched = matching.inject_attention(edit, trajectory, chosen)
            seen, masks = [], {}
            if "mask_layer" in p:
                _watch_mask(matching, pack, model, p, masks)
            try:
                found = sample_matched(pack, matched, case, _first_outputs(seen))
            finally:
                masks.get("undo", lambda: None)()
            compare_run(found, case, letter)
            first = dict(seen)
            check(torch.stack([first[1], first[0]]), t[f"network_output_step0_{letter}"], case, "first outputs")
            if "mask_layer" in p:
                check(masks["difference"], t[f"mask_raw_{letter}"], case, "difference")
                check(masks["weight"], t[f"mask_{letter}"], case, "weight")
                expected = torch.tensor(s["threshold_per_frame"])
                assert torch.allclose(torch.tensor(masks["thresholds"]), expected, atol=1e-7)
        table = case.info.get("tables", {}).get(f"temporal_replacement_{letter}")
        if table:
            compare_table(pack, matching, model, trajectory, chosen, table)
    if "guidance" in t:
        assert torch.allclose(torch.linspace(p["guidance_min"], p["guidance_max"], p["frames"]), t["guidance"])


def _watch_mask(matching, pack, model, p, masks) -> None:
    """Note the difference and weight of one layer at one step, as the read-out is told them."""
    names = pack("core.weights.diffusers_svd")
    table = {a: b for a, b, _ in names.module_table(names.layout_from_comfy(model.model.diffusion_model.state_dict()))}
    site = table[p["mask_layer"].removesuffix(".transformer_blocks.0.attn1")]
    before = pack("host.attention.injection_run").ReadOut.add
    calls = []

    def add(self, at, difference, weight, size):
        if at.path == site:
            if len(calls) == p["mask_step"]:
                masks.update(difference=difference.clone(), weight=weight.clone())
            calls.append(1)
        before(self, at, difference, weight, size)

    run = pack("host.attention.injection_run").InjectionRun.__init__

    def noted(self, *args):
        run(self, *args)
        masks["thresholds"] = self.thresholds

    def undo():
        pack("host.attention.injection_run").ReadOut.add, pack("host.attention.injection_run").InjectionRun.__init__ = before, run

    pack("host.attention.injection_run").ReadOut.add, pack("host.attention.injection_run").InjectionRun.__init__ = add, noted
    masks["undo"] = undo


def compare_table(pack, matching, model, trajectory, settings, table) -> None:
    """Which temporal layers are replaced at which step, and by which inversion step."""
    names = pack("core.weights.diffusers_svd")
    modules = {a: b for a, b, _ in names.module_table(names.layout_from_comfy(model.model.diffusion_model.state_dict()))}
    plan = matching.read_out_of(matching.inject_attention(model, trajectory, settings))[1]
    run = pack("host.attention.injection_run").InjectionRun(plan, trajectory.frames)
    tail = ".temporal_transformer_blocks.0.attn1"
    for step, source, *replaced in table["rows"]:
        assert pack("core.inversion.schedule").source_step(step, trajectory.steps) == source
        found = [f"p|{modules[c.removesuffix(tail)]}.time_stack.0" in run.wanted(step) for c in table["columns"][2:]]
        assert found == [bool(r) for r in replaced], f"step {step}"


def with_lora(pack, model, case: Case, scale: float):
    """A case's motion LoRA put on by the host's own loader."""
    import comfy.sd

    tensors = case.network("lora")
    bases = {n.removesuffix(".lora_up.weight") for n in tensors if n.endswith(".lora_up.weight")}
    names = pack("core.weights.diffusers_svd")
    layout = names.layout_from_comfy(model.model.diffusion_model.state_dict())
    placed = names.to_comfy([f"{b}.weight" for b in sorted(bases)], layout)
    lora = {}
    for base in bases:
        key = "diffusion_model." + placed[f"{base}.weight"].removesuffix(".weight")
        lora |= {f"{key}.lora_{part}.weight": tensors[f"{base}.lora_{part}.weight"] for part in ("up", "down")}
    out = comfy.sd.load_lora_for_models(model, None, lora, scale, 0.0)[0]
    assert sum(len(p) for p in out.patches.values()) == len(bases)
    return out


def attention_matched_sampling_off(case: Case, pack, build) -> None:
    matching, injection_run = pack("host.attention.injection"), pack("host.attention.injection_run")
    model, p = build(case), case.info["parameters"]
    trajectory = given_trajectory(pack, model, case)
    compare_run(sample_matched(pack, model, case), case, "plain")
    for name, spatial, temporal in (("plain", False, False), ("temporal_only", False, True), ("spatial_only", True, False)):
        settings = injection_run.Settings(tuple(p["mask_thr"]), tuple(p["temporal_step_thr"]), spatial=spatial, temporal=temporal)
        compare_run(sample_matched(pack, matching.inject_attention(model, trajectory, settings), case), case, name)


CHECKS = {f.__name__: f for f in (sarp, inversion_schedule, edit_conditioning, edm_inversion, attention_record,
                                  attention_matched_sampling, attention_matched_sampling_off)}
OURS = [c for c in CASES if c.kind not in ELSEWHERE]


@pytest.mark.parametrize("case", OURS, ids=repr)
def test_golden_case(case: Case, pack, build, monkeypatch):
    assert case.kind in CHECKS, f"{case.folder} is of the unknown kind '{case.kind}'"
    extra = (monkeypatch,) if case.kind == "edit_conditioning" else ()
    CHECKS[case.kind](case, pack, build, *extra)


def test_golden_folder_is_covered():
    """Every kind that these tests know has a case in the repository's own folder, and every folder there is a case."""
    from framepainter_tests.golden import OWN

    own = [Case(p.parent) for p in sorted((OWN / "i2vedit").glob("*/case.json"))]
    assert set(CHECKS) <= {c.kind for c in own} <= set(CHECKS) | ELSEWHERE
    folders = [p for p in system_folder("i2vedit").iterdir() if p.is_dir() and p.name != "manifests"]
    assert len(folders) == len(CASES)
