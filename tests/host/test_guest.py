"""A patch never changes a shared model, and everything composes with the user's other nodes."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import Edit, rounding, sample


@pytest.fixture(scope="module")
def network(pack):
    return pack("host.models.network")


@pytest.fixture(scope="module")
def guidance(pack):
    return pack("host.sampling.guidance")


@pytest.fixture(scope="module")
def control(pack):
    return pack("host.signals.control")


@pytest.fixture
def patches(pack):
    return pack("host.attention.matching")


@pytest.fixture
def full(guidance, control, patches, edit: Edit, strokes):
    """Matching, control and guidance, all on."""
    model = control.apply_control(edit.loaded.model, edit.loaded.weights.encoder, strokes, 0.8, 0.0, 1.0, "release")
    return guidance.set_guidance(model, "inverse square")


@pytest.fixture
def plain(patches, edit: Edit):
    return patches.attach_matching(edit.loaded.model, None, "off", 1.0)


def test_strength_zero_is_the_unpatched_model(guidance, control, patches, edit, strokes, plain):
    before = sample(plain, edit)
    weights = edit.loaded.weights
    nothing = patches.attach_matching(plain, weights.matching, "release", 0.0)
    nothing = control.apply_control(nothing, weights.encoder, strokes, 0.0, 0.0, 1.0, "release")
    assert torch.equal(sample(guidance.set_guidance(nothing, "constant"), edit), before)
    assert torch.equal(sample(patches.attach_matching(plain, None, "cross-frame", 0.0), edit), before)


def test_off_is_a_model_that_never_had_the_branch(pack, edit, plain, checkpoint):
    file, names = pack("core.weights.weight_file").WeightFile.open(checkpoint), pack("core.weights.framepainter")
    tensors = file.read(names.split_single_file(file.shapes).unet)
    assert torch.equal(sample(pack("host.weights.building").build_unet(tensors, torch.float32), edit), sample(plain, edit))


def test_unpatched_model_is_unchanged_after_a_patched_run(edit, full, plain):
    weights = {n: p.clone() for n, p in plain.model.state_dict().items()}
    before, patched = sample(plain, edit), sample(full, edit)
    assert relative(patched, before) > 1e-2  # the patches do something
    assert torch.equal(sample(plain, edit), before)
    assert all(torch.equal(p, weights[n]) for n, p in plain.model.state_dict().items())


def test_running_twice_gives_the_same_bits(edit, full):
    assert torch.equal(sample(full, edit), sample(full, edit))


def test_nothing_stays_on_the_module_after_unloading(pack, patches, edit, full):
    sample(full, edit)
    mm.unload_all_models()
    # The host puts the original method back as an attribute of the module, so look whose it is.
    marked = pack("host.attention.blocks")._Marked
    assert not [n for n, m in full.model.diffusion_model.named_modules() if isinstance(m.forward, marked)]


def test_attaching_again_replaces(patches, edit):
    model, weights = edit.loaded.model, edit.loaded.weights
    again = patches.attach_matching(patches.attach_matching(model, weights.matching, "paper", 0.5), weights.matching,
                                    "release", 1.0)
    assert torch.equal(sample(again, edit), sample(model, edit))


def test_each_semantics_is_its_own(patches, edit, plain):
    matching = edit.loaded.weights.matching
    results = [sample(plain, edit)] + [sample(patches.attach_matching(plain, matching, s, 1.0), edit)
                                       for s in ("release", "paper", "cross-frame")]
    for i, a in enumerate(results):
        for b in results[i + 1:]:
            assert relative(a, b) > 1e-3


@pytest.mark.parametrize("semantics", ["release", "cross-frame"])
def test_together_or_one_after_another(control, patches, edit, strokes, monkeypatch, semantics):
    """Conditional and unconditional rows batched in one pass, or split for want of memory: the same result."""
    weights = edit.loaded.weights
    model = patches.attach_matching(edit.loaded.model, weights.matching, semantics, 1.0)
    model = control.apply_control(model, weights.encoder, strokes, 0.8, 0.0, 1.0, "release")
    groups = []

    def spy(apply_model, args):
        groups.append(list(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(spy)
    together = sample(model, edit)
    assert all(len(g) == 2 for g in groups)
    groups.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    apart = sample(model, edit)
    assert all(len(g) == 1 for g in groups)
    assert relative(apart, together) < 4 * rounding(model, edit) < 1e-3  # other shapes of products round otherwise


def test_stacks_with_a_core_lora(guidance, patches, edit, full, plain):
    path = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = plain.model.diffusion_model.state_dict()[path]
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(s, generator=generator) * 0.3 for s in ((weight.shape[0], 4), (4, weight.shape[1])))
    key = "lora_unet_" + path.removesuffix(".weight").replace(".", "_")
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    without = sample(full, edit)
    early = comfy.sd.load_lora_for_models(edit.loaded.model, None, lora, 1.0, 0.0)[0]
    late = comfy.sd.load_lora_for_models(full, None, lora, 1.0, 0.0)[0]
    with_lora = sample(late, edit)
    assert relative(with_lora, without) > 1e-4
    early = guidance.set_guidance(early, "inverse square")
    early.model_options["transformer_options"]["patches"] = full.model_options["transformer_options"]["patches"]
    assert torch.equal(sample(early, edit), with_lora)
    assert torch.equal(sample(full, edit), without)


def test_matching_weights_take_a_lora_of_their_own(pack, patches, edit):
    """The trained parts are ordinary ModelPatchers: a patch on them acts, and is gone for who does not ask for it."""
    matching = edit.loaded.weights.matching
    before = sample(edit.loaded.model, edit)
    changed = matching.clone()
    name = "middle_block.1.transformer_blocks.0.to_v.weight"
    changed.add_patches({name: ("diff", (torch.ones_like(matching.model.state_dict()[name]),))})
    after = sample(patches.attach_matching(edit.loaded.model, changed, "release", 1.0), edit)
    assert relative(after, before) > 1e-4
    assert torch.equal(sample(edit.loaded.model, edit), before)


def test_stacks_with_another_attention_patch(patches, edit, full):
    """A foreign replacement of attn1 that computes the same attention changes nothing; a foreign output patch adds up."""
    from comfy.ldm.modules.attention import optimized_attention

    before = sample(full, edit)
    same = full.clone()
    for place, number in (("input", 1), ("middle", 0), ("output", 5)):
        same.set_model_attn1_replace(
            lambda q, k, v, o: optimized_attention(q, k, v, o["n_heads"], attn_precision=o["attn_precision"]), place,
            number)
    assert relative(sample(same, edit), before) < 1e-6
    doubled = full.clone()
    doubled.set_model_attn1_output_patch(lambda out, options: out * 1.1)
    assert relative(sample(doubled, edit), before) > 1e-3
    assert torch.equal(sample(full, edit), before)


def test_core_attention_guidance_on_top(edit, full):
    """Core's perturbed-attention node, on our model: it acts, and it comes off."""
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance as Pag

    before = sample(full, edit)
    result = Pag.execute(full, 3.0) if hasattr(Pag, "execute") else Pag().patch(full, 3.0)
    assert relative(sample(result[0] if isinstance(result, tuple) else result.args[0], edit), before) > 1e-3
    assert torch.equal(sample(full, edit), before)


def test_schedule_bounds(control, patches, edit, strokes):
    """Acting over the whole range is acting over both halves; outside its range a signal does not exist."""
    model, encoder = edit.loaded.model, edit.loaded.weights.encoder

    def run(*ranges):
        patched = model
        for start, end in ranges:
            patched = control.apply_control(patched, encoder, strokes, 0.8, start, end, "release")
        return sample(patched, edit, steps=4)

    whole, none = run((0.0, 1.0)), sample(model, edit, steps=4)
    assert torch.equal(run((0.0, 0.5), (0.5, 1.0)), whole)
    assert relative(run((0.0, 0.5)), whole) > 1e-6
    assert torch.equal(run((0.05, 0.15)), none)  # between the first sigma of the run and the second
    with pytest.raises(ValueError, match="start_percent 0.5 is not before end_percent 0.5"):
        run((0.5, 0.5))


def test_control_rows(control, patches, edit, strokes):
    """Unconditional rows stay; the paper's semantics leave frame 0 alone; the skip tensor is never written."""
    encoder = edit.loaded.weights.encoder
    mm.load_models_gpu([encoder])
    h = torch.randn(4, 64, 4, 6, generator=torch.Generator().manual_seed(0))
    kept = h.clone()
    options = {"block": ("input", 3), "cond_or_uncond": [1, 0], "sigmas": torch.tensor([2.0]),
               "original_shape": [4, 8, 8, 12]}
    picture = strokes.movedim(-1, 1)
    released = control.ControlPatch(encoder, picture, 3, 0.8, (0.0, 700.0)[::-1], False)(h, options)
    paper = control.ControlPatch(encoder, picture, 3, 0.8, (700.0, 0.0), True)(h, options)
    assert torch.equal(h, kept)
    for out in (released, paper):
        assert torch.equal(out[:2], h[:2])
    assert torch.equal(paper[2], h[2]) and not torch.equal(released[2], h[2])
    assert torch.allclose(paper[3], released[3], atol=1e-6) and not torch.equal(paper[3], h[3])
    swapped = control.ControlPatch(encoder, picture, 3, 0.8, (700.0, 0.0), False)(
        h.roll(2, 0), {**options, "cond_or_uncond": [0, 1]})
    assert torch.allclose(swapped.roll(2, 0), released, atol=1e-6)


def test_a_longer_clip_follows_too(control, patches, edit, strokes):
    """One drawing controls every later frame of a video model's clip."""
    model = control.apply_control(edit.loaded.model, edit.loaded.weights.encoder, strokes, 0.8, 0.0, 1.0, "release")
    out = sample(model, edit, frames=5)
    assert out.shape[0] == 5 and torch.isfinite(out).all()


def test_cross_frame_of_equal_frames_is_self_attention(patches, edit):
    """If every frame equals the source, seeing the source as well as oneself is seeing oneself."""
    from comfy.ldm.modules.attention import optimized_attention  # noqa: F401  the host's attention is what runs below

    site = "input_blocks.4.1.transformer_blocks.0"
    attention = edit.loaded.model.model.diffusion_model.get_submodule(site + ".attn1")
    normed = torch.randn(1, 20, 128, generator=torch.Generator().manual_seed(2)).expand(3, -1, -1)
    out = attention(normed)
    keys = patches.keys
    block = edit.loaded.model.model.diffusion_model.get_submodule(site)
    wide = patches.CrossFramePatch(1.0)(out, {keys.SITE: site, keys.BLOCK: block, keys.NORMED: normed,
                                              "cond_or_uncond": [0]})
    assert relative(wide, out) < 1e-6


def test_extra_weights_belong_to_the_host(edit, full):
    """The host sees the encoder and the branch, loads them with the model and can take them away.

    However often the model is cloned, they are the very same modules: no node copies weights.
    """
    full = full.clone().clone()
    models = full.model_patches_models()
    weights = edit.loaded.weights
    assert {id(m.model) for m in models} == {id(weights.encoder.model), id(weights.matching.model)}
    sample(full, edit)
    loaded = {id(m.model.model) for m in mm.current_loaded_models if m.model is not None}
    assert {id(m.model) for m in models} <= loaded
    mm.unload_all_models()
    assert mm.current_loaded_models == []
    sample(full, edit)


def test_partly_loaded_weights_give_the_same_bits(edit, full, pack):
    """Low-VRAM loading casts weights at use, one op at a time; the branch and the encoder must bear it."""
    before = sample(full, edit)
    for patcher in (edit.loaded.weights.matching, edit.loaded.weights.encoder):
        patcher.patch_model(lowvram_model_memory=1)
        assert any(getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules())
    after = sample(full, edit)
    mm.unload_all_models()
    assert torch.equal(after, before)


@pytest.mark.parametrize("semantics", ["release", "cross-frame"])
def test_a_copy_with_its_own_network_runs_that(pack, patches, edit, checkpoint, semantics):
    """Newer hosts copy a model for compiling, training and several GPUs: the copy must not run the original's blocks."""
    model = patches.attach_matching(edit.loaded.model, edit.loaded.weights.matching, semantics, 1.0)
    if hasattr(model, "get_clone_model_override"):
        copy = model.clone(force_deepcopy=True)
    else:  # what such a host does: the patches on another module, then the callbacks
        copy = pack("host.weights.loading")._load_unet(checkpoint, torch.float32).clone()
        copy.model_options, copy.object_patches = model.model_options, model.object_patches.copy()
        for callback in model.get_all_callbacks("on_clone"):
            callback(model, copy)
    assert copy.model is not model.model
    before = sample(model, edit)
    assert relative(sample(copy, edit), before) < 1e-4
    for name, parameter in copy.model.diffusion_model.named_parameters():
        if ".transformer_blocks." in name:
            with torch.inference_mode():
                parameter.data = torch.zeros_like(parameter)
    assert relative(sample(copy, edit), before) > 1e-2
    assert torch.equal(sample(model, edit), before)


@pytest.mark.parametrize("family", ["SD15", "SDXL"])
def test_other_families_are_refused(network, control, patches, edit, strokes, family):
    from framepainter_tests.image_models import image_model

    model, weights = image_model(family), edit.loaded.weights
    for attempt in (lambda: patches.attach_matching(model, weights.matching, "release", 1.0),
                    lambda: patches.attach_matching(model, None, "cross-frame", 1.0),
                    lambda: control.apply_control(model, weights.encoder, strokes, 0.8, 0.0, 1.0, "release"),
                    lambda: network.svd_layout(model)):
        with pytest.raises(network.WrongModel, match=f"(BaseModel|{family}).*Stable Video Diffusion.*Load FramePainter"):
            attempt()


def test_trained_weights_are_asked_for(network, patches, edit, plain):
    with pytest.raises(network.WrongModel, match="'paper' needs the trained matching weights.*cross-frame"):
        patches.attach_matching(plain, None, "paper", 1.0)
