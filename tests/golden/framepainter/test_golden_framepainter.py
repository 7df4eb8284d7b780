"""The published FramePainter code against this pack on ComfyUI's own SVD UNet: every case, within the README's limits."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn as nn
from framepainter_tests.golden import Case, cases, relative, system_folder
from safetensors.torch import save_file

CASES = cases("framepainter")
# Suggested limits of the cases' README, with matched GroupNorm epsilon.
LIMIT_BLOCK, LIMIT_UNET, LIMIT_RUN, LIMIT_CLIP, LIMIT_SIGMAS, LIMIT_TIMESTEP = 1e-5, 1e-5, 2e-5, 1e-4, 1e-5, 1e-5


@pytest.fixture(scope="module")
def load_case(pack, tmp_path_factory):
    """Load a case's networks as a user would: from two released-form files."""
    loaded = {}

    def load(case: Case):
        key = (case.info["salt"], json.dumps(case.info["networks"], sort_keys=True))
        if key not in loaded:
            folder = tmp_path_factory.mktemp("weights")
            unet, encoder = folder / "unet.safetensors", folder / "encoder.safetensors"
            # The released file says nothing of its heads, which are 64 wide; a case may differ.
            head_width = str(case.config("unet").get("head_dim", 64))
            save_file(case.network("unet"), str(unet), metadata={"framepainter.head_width": head_width})
            if "control_encoder" in case.info["networks"]:
                save_file(case.network("control_encoder"), str(encoder))
            else:  # a UNet alone: any encoder of its width completes the pair
                _random_encoder(pack, case.config("unet")["block_out_channels"][0], encoder)
            loaded[key] = pack("host.weights.loading").load(unet, encoder, None, torch.float32)
        return loaded[key]

    return load


def _random_encoder(pack, width: int, path) -> None:
    module = pack("core.models.control_encoder")
    widths = module.EncoderWidths(3, 128, 256, (64, 64, 128), (128, 256), width)
    save_file(module.ControlEncoder(widths).state_dict(), str(path))


class StoredFeatures(nn.Module):
    """Stands where the control encoder stands and returns a case's stored features."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images, t):
        return self.features


def clip_preprocess(case: Case, pack, load_case) -> None:
    images = pack("core.images")
    norm = case.info["normalisation"]
    for run in case.info["runs"]:
        height, width = run["image_size"]
        if run["image_tensor"]:
            image = case.tensors[run["image_tensor"]]
        else:
            image = formula_image(run["formula"]["expression"], height, width)
        size = case.tensors[run["pixel_values"]].shape[-1]
        out = images.clip_pixels(image, size, tuple(norm["mean"]), tuple(norm["std"]))
        assert relative(out, case.tensors[run["pixel_values"]]) < LIMIT_CLIP


def formula_image(expression: str, height: int, width: int) -> torch.Tensor:
    """A picture given as an integer formula of x, y and channel c; evaluated without eval, by walking its syntax."""
    import ast
    import operator

    y, x, c = torch.meshgrid(torch.arange(height), torch.arange(width), torch.arange(3), indexing="ij")
    names = {"x": x, "y": y, "c": c}
    operations = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: torch.remainder,
                  ast.FloorDiv: lambda a, b: torch.div(a, b, rounding_mode="floor")}

    def value(node):
        if isinstance(node, ast.BinOp):
            return operations[type(node.op)](value(node.left), value(node.right))
        return names[node.id] if isinstance(node, ast.Name) else node.value

    return (torch.remainder(value(ast.parse(expression, mode="eval").body), 256).float() / 255.0)[None]


def control_encoder(case: Case, pack, load_case) -> None:
    encoder = pack("host.weights.building").build_encoder(case.network("control_encoder"), torch.float32).model
    edm = pack("core.edm")
    for i, run in enumerate(case.info["runs"]):
        frames = case.tensors[run["frames"]].flatten(0, 1)
        timesteps = edm.network_timestep(torch.tensor(run["sigmas"]))
        assert (timesteps - case.tensors[run["timesteps"]]).abs().max() < LIMIT_TIMESTEP
        for t, expected in zip(timesteps, case.tensors[run["features"]], strict=True):
            assert relative(encoder(frames, t.expand(len(frames))), expected) < LIMIT_BLOCK, f"run {i}, t = {float(t)}"


def control_normalisation(case: Case, pack, load_case) -> None:
    injection = pack("core.models.control_injection")
    for run in case.info["runs"]:
        t = case.of_run(run)
        assert relative(injection.match_statistics(t["control"], t["features"]), t["matched"]) < LIMIT_BLOCK, run["note"]
        assert relative(injection.inject(t["features"], t["control"], t["scale"]), t["result"]) < LIMIT_BLOCK, run["note"]


def matching_block(case: Case, pack, load_case) -> None:
    from comfy.ldm.modules.attention import BasicTransformerBlock

    patches, keys, building = pack("host.attention.matching"), pack("host.keys"), pack("host.weights.building")
    config = case.config("block")
    block = BasicTransformerBlock(config["dim"], config["heads"], config["head_dim"], context_dim=config["context_dim"],
                                  operations=nn)
    weights = case.network("block")
    mark = "sparse_attention."
    block.load_state_dict({n: t for n, t in weights.items() if not n.startswith(mark)})
    branch = building.build_matching({"b." + n[len(mark):]: t for n, t in weights.items() if n.startswith(mark)},
                                    torch.float32, config["head_dim"])
    groups = case.info["parameters"]["batch"]
    seen = {}

    def spy(before: str):
        return lambda out, options: seen.setdefault(before, out)

    for semantics, targets_only in (("released", False), ("paper", True)):
        seen.clear()
        options = {"cond_or_uncond": [1, 0][:groups], keys.SITE: "b", "patches": {
            "attn1_patch": [pack("host.attention.blocks").NormedInput()],
            "attn1_output_patch": [spy("self"), patches.MatchingPatch(branch, 1.0, targets_only), spy("both")]}}
        out = block(case.tensors["hidden_states"], context=case.tensors["context"], transformer_options=options)
        assert relative(out, case.tensors[f"output_{semantics}"]) < LIMIT_BLOCK
        assert relative(seen["self"], case.tensors["self_attention"]) < LIMIT_BLOCK
        assert relative(seen["both"] - seen["self"], case.tensors[f"matching_{semantics}"]) < LIMIT_BLOCK


def _watched_block(seen: list, name: str, block: int):
    """A patch that notes the hidden state at the injection point and changes nothing."""

    def watched(h, options):
        if options["block"] == ("input", block):
            seen.append((name, h))
        return h

    return watched


def unet_forward(case: Case, pack, load_case) -> None:
    import comfy.model_management
    import comfy.model_patcher

    patches = pack("host.attention.matching")
    loaded = load_case(case)
    block = pack("host.models.network").svd_layout(loaded.model).injection_block
    for run in case.info["runs"]:
        t = case.of_run(run)
        batch, frames = t["sample"].shape[:2]
        x = t["sample"].flatten(0, 1)
        context = t["context"].repeat_interleave(frames, 0)
        embedder = loaded.model.model.embedder
        y = torch.stack([embedder(ids).flatten() for ids in t["added_time_ids"]]).repeat_interleave(frames, 0)

        def forward(model, step, seen=None, x=x, y=y, context=context, t=t, run=run, frames=frames, batch=batch):
            comfy.model_management.load_models_gpu([model, *model.model_patches_models()])
            options = {**model.model_options["transformer_options"], "cond_or_uncond": [1, 0][:batch],
                       "sigmas": torch.tensor(run["sigmas"][step:step + 1])}
            if seen is not None:
                spied = {k: list(v) for k, v in options["patches"].items()}
                after_skip = spied.get("input_block_patch_after_skip", [])
                spied["input_block_patch_after_skip"] = [
                    _watched_block(seen, "before", block), *after_skip, _watched_block(seen, "after", block)]
                options["patches"] = spied
            timesteps = t["timesteps"][step].expand(len(x))
            return model.model.diffusion_model(x, timesteps, context=context, y=y, control=None,
                                               transformer_options=options, num_video_frames=frames)

        # The case stores the encoder's features: feed exactly those to the real injection. Rows: uncond, then cond.
        scale = t["control_scale"].flatten()
        stored = StoredFeatures(t["control"][-frames:])
        assert torch.equal(scale, torch.tensor([0.0] * (len(scale) - frames) + [run["control_scale"]] * frames))
        stored.widths = loaded.weights.encoder.model.widths
        encoder = comfy.model_patcher.ModelPatcher(stored, torch.device("cpu"), torch.device("cpu"))
        picture = torch.ones(1, 8 * x.shape[-2], 8 * x.shape[-1], 3)
        control = pack("host.signals.control")
        controlled = control.apply_control(loaded.model, encoder, picture, run["control_scale"], 0.0, 1.0, "release")
        plain = patches.attach_matching(loaded.model, None, "off", 1.0)
        for step in range(len(run["sigmas"])):
            seen = []
            for model, key, look in ((controlled, "output_control", seen), (loaded.model, "output_no_control", None),
                                     (plain, "output_plain_svd", None)):
                out = forward(model, step, look).reshape(t[key][step].shape)
                assert relative(out, t[key][step]) < LIMIT_UNET, f"{key}, sigma {run['sigmas'][step]}"
            if step == 0:
                h = dict(seen)
                assert relative(h["before"], t["before_injection"]) < LIMIT_UNET
                assert relative(h["after"], t["after_injection"]) < LIMIT_UNET


def _watched_guidance(model, seen: list):
    """The model's own guidance, noting the scale that it applied."""
    inner = model.model_options.get("sampler_cfg_function",
                                    lambda a: a["uncond"] + a["cond_scale"] * (a["cond"] - a["uncond"]))

    def watched(args):
        out = inner(args)
        difference = (args["cond"] - args["uncond"]).flatten()
        at = difference.abs().argmax()
        # At scale 1 the host skips the unconditional half, and there is nothing to guide away from.
        seen.append(float((out - args["uncond"]).flatten()[at] / difference[at]) if float(difference[at]) else 1.0)
        return out

    return watched


def _watched_first_step(seen: list):
    """Notes the network's raw output v of the first step, per conditioning group, from x and the denoised latents."""

    def watched(apply_model, args):
        denoised = apply_model(args["input"], args["timestep"], **args["c"])
        if len(seen) < 2:
            sigma = args["timestep"].double()[:, None, None, None]
            v = (args["input"].double() / (sigma**2 + 1) - denoised.double()) * (sigma**2 + 1).sqrt() / sigma
            seen.extend(zip(args["cond_or_uncond"], v.chunk(len(args["cond_or_uncond"])), strict=True))
        return denoised

    return watched


def _with_noise_range(model, scheduler: dict):
    """The model at the case's noise range; SVD's own needs nothing."""
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    sampling = model.get_model_object("model_sampling")
    low, high = scheduler["sigma_min"], scheduler["sigma_max"]
    if abs(float(sampling.sigma_max) / high - 1) < 1e-5 and abs(float(sampling.sigma_min) / low - 1) < 1e-5:
        return model
    return ModelSamplingContinuousEDM().patch(model, "v_prediction", high, low)[0]


def edit_sampling(case: Case, pack, load_case) -> None:
    import comfy.sample
    import comfy.samplers

    conditioning = pack("host.conditioning")
    loaded = load_case(case)
    for run in case.info["runs"]:
        t = case.of_run(run)
        positive, negative = conditioning.svd_conditioning(
            t["image_embeds"], t["image_latents"],
            conditioning.MicroConds(run["fps_id"], run["motion_bucket_id"], run["noise_augmentation"]))
        schedule = {"inv_square": "inverse square", "none": "constant"}[run["guidance_decay"]]
        model = pack("host.sampling.guidance").set_guidance(pack("host.signals.control").apply_control(
            loaded.model, loaded.weights.encoder, t["frames"][1:].movedim(1, -1), run["control_scale"], 0.0, 1.0,
            "release"), schedule)
        model = _with_noise_range(model, case.info["scheduler"])
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", run["steps"])
        assert ((sigmas - t["sigmas"]).abs() / t["sigmas"].clamp_min(1e-9)).max() < LIMIT_SIGMAS
        timesteps = pack("core.edm").network_timestep(sigmas[:-1])
        assert (timesteps - t["timesteps"]).abs().max() < LIMIT_TIMESTEP
        guidance, states, first_v = [], [], []
        model.set_model_sampler_cfg_function(_watched_guidance(model, guidance))
        model.set_model_unet_function_wrapper(_watched_first_step(first_v))
        noise = t["noise"][0]
        out = comfy.sample.sample(
            model, noise, run["steps"], run["guidance_scale"], "euler", "karras", positive, negative,
            torch.zeros_like(noise), callback=lambda i, x0, x, n, states=states: states.append(x.clone()))
        assert torch.allclose(torch.tensor(guidance), t["guidance"], rtol=1e-3), (guidance, t["guidance"])
        assert relative(states[0], noise * run["init_noise_sigma"]) < 1e-6
        if "v_first_step" in t:
            by_kind = dict(first_v)  # 1 uncond, 0 cond; together or apart, as memory allowed
            assert relative(torch.stack([by_kind[1], by_kind[0]]), t["v_first_step"]) < LIMIT_UNET
        final = loaded.model.model.process_latent_in(out)
        assert relative(final, t["latents_final"][0]) < LIMIT_RUN
        if run["per_step_latents"]:
            for i, expected in enumerate(t["latents_per_step"][:-1]):
                assert relative(states[i + 1], expected) < LIMIT_RUN, f"step {i}"


CHECKS = {f.__name__: f for f in (clip_preprocess, control_encoder, control_normalisation, matching_block, unet_forward,
                                  edit_sampling)}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_golden_case(case: Case, pack, load_case):
    assert case.kind in CHECKS, f"{case.folder} is of the unknown kind '{case.kind}'"
    CHECKS[case.kind](case, pack, load_case)


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "unet_forward"], ids=repr)
def test_network_without_savings(case: Case, pack, load_case):
    """The other way to the same values; FRAMEPAINTER_SAVINGS=off takes it in all cases of all systems."""
    with pack("host.models.savings").switched(False):
        unet_forward(case, pack, load_case)


def test_golden_folder_is_covered():
    """Every kind that the pack knows has a case in the repository's own folder, and every folder there is a case."""
    from framepainter_tests.golden import OWN

    own = [Case(p) for p in sorted((OWN / "framepainter").iterdir()) if p.is_dir() and p.name != "manifests"]
    assert {c.kind for c in own} == set(CHECKS)
    folders = [p for p in system_folder("framepainter").iterdir() if p.is_dir() and p.name != "manifests"]
    assert len(folders) == len(CASES)
