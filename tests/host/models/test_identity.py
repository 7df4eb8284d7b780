"""What tells one model from another: every value of every weight, and whatever is patched onto it."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import replace

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import pytest
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from framepainter_tests import tiny

HEIGHT, WIDTH = 4, 6


@pytest.fixture(scope="module")
def identity(pack):
    return pack("host.models.identity")


@pytest.fixture(scope="module")
def file(pack, tool, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)


@pytest.fixture
def loaded(pack, file):
    """Of its own for every test, as some change its weights."""
    with torch.inference_mode():
        return pack("host.weights.loading").load(file, None, None, torch.float32)


@pytest.fixture
def model(pack, loaded):
    """A plain SVD model, as core's loaders give it."""
    return comfy.model_patcher.ModelPatcher(loaded.model.model, loaded.model.load_device, loaded.model.offload_device)


def weight(model):
    return model.model.diffusion_model.input_blocks[0][0].weight


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_any_value_of_any_weight(identity, model):
    """In tensors that keep no count of their changes, too."""
    whole = identity.model_digest(model, True)
    for name, parameter in list(model.model.diffusion_model.named_parameters())[::5]:
        flat = parameter.data.view(-1)
        place = len(flat) // 3
        before = flat[place].clone()
        with torch.inference_mode():
            flat[place] += 0.25
            assert identity.model_digest(model, True) != whole, name
            flat[place] = before
    assert identity.model_digest(model, True) == whole == identity.model_digest(model, False)


def test_a_check_does_not_look_again_but_for_cause(identity, model, monkeypatch):
    first = identity.model_digest(model, True, fresh=False)
    monkeypatch.setattr(identity, "checksum", lambda values: pytest.fail("looked again"))
    assert identity.model_digest(model.clone(), True, fresh=False) == first
    monkeypatch.undo()
    with torch.inference_mode():
        weight(model).data.view(-1)[0] += 1  # one that is sampled
    assert identity.model_digest(model, True, fresh=False) == identity.model_digest(model, True) != first


def test_precision_is_told_apart_from_values(identity, pack, file, model):
    with torch.inference_mode():
        halves = pack("host.weights.loading").load(file, None, None, torch.bfloat16).model
        again = pack("host.weights.building").build_unet(
            {n: p.float() for n, p in halves.model.diffusion_model.state_dict().items()}, torch.float32, tiny.HEAD_WIDTH)
    assert identity.model_digest(halves, True) == identity.model_digest(again, True) != identity.model_digest(model, True)
    assert identity.precision_of(halves) != identity.precision_of(again)


def lora(model, place: int | None = None):
    """A LoRA on one layer, as the host loads it; one value changed."""
    name = next(n.removesuffix(".weight") for n in model.model.state_dict() if n.endswith("time_stack.0.attn1.to_q.weight"))
    outer, inner = model.model.state_dict()[f"{name}.weight"].shape
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(outer, 100, generator=generator), torch.randn(100, inner, generator=generator)
    if place is not None:
        down.view(-1)[place] += 1
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}


def test_weight_patches_in_full(identity, model):
    def with_lora(place=None, strength=0.5):
        return comfy.sd.load_lora_for_models(model, None, lora(model, place), strength, 0.0)[0]

    digests = {identity.model_digest(with_lora(p), True) for p in (None, 0, 1, 7, 1000, 1599)}
    assert len(digests | {identity.model_digest(model, True), identity.model_digest(with_lora(strength=0.25), True)}) == 8
    assert identity.model_digest(with_lora(), True) == identity.model_digest(with_lora(), True)
    assert identity.model_digest(with_lora(), False) == identity.model_digest(model, False)


def test_weight_patches_written_into_the_weights(identity, model):
    """A model that is loaded with its LoRA is the one that rests."""
    import comfy.model_management as mm

    patched = comfy.sd.load_lora_for_models(model, None, lora(model), 0.5, 0.0)[0]
    resting = [identity.model_digest(m, p) for m in (model, patched) for p in (False, True)]
    mm.load_models_gpu([patched])
    assert [identity.model_digest(m, p) for m in (model, patched) for p in (False, True)] == resting
    mm.unload_all_models()


def test_what_an_earlier_version_wrote_is_recognised(pack, identity, model):
    earlier = pack("host.models.earlier").sampled_digest(model, True)
    assert identity.made_by(earlier, model, True) and identity.made_by(identity.model_digest(model, True), model, True)
    assert not identity.made_by(earlier[::-1], model, True)


# ---- patches ---------------------------------------------------------------------------------------------------------


def foreign(code: str = "def patch(*args): return args[0]", **names):
    """A function of another node pack."""
    module = types.ModuleType("some_other_pack")
    vars(module).update(names)
    exec(compile(code, "/somewhere/custom_nodes/some_other_pack/nodes.py", "exec"), vars(module))  # noqa: S102
    sys.modules[module.__name__] = module
    return module.patch


def put(model, how: str, what):
    clone = model.clone()
    if how == "function wrapper":
        clone.set_model_unet_function_wrapper(what)
    elif how == "cfg function":
        clone.set_model_sampler_cfg_function(what)
    elif how == "post cfg function":
        clone.set_model_sampler_post_cfg_function(what)
    elif how == "attention patch":
        clone.set_model_attn2_patch(what)
    elif how == "replaced attention":
        clone.set_model_attn1_replace(what, "input", 1)
    elif how == "object patch":
        clone.add_object_patch("diffusion_model.out.2.forward", what)
    elif how == "wrapper":
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", what)
    elif how == "callback":
        clone.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "other", what)
    elif how == "injection":
        clone.set_injections("other", [comfy.patcher_extension.PatcherInjection(what, what)])
    elif how == "option":
        clone.model_options["transformer_options"]["other"] = what
    elif how == "weight wrapper":
        clone.add_weight_wrapper("diffusion_model.out.2.weight", what)
    return clone


WAYS = ("function wrapper", "cfg function", "post cfg function", "attention patch", "replaced attention", "object patch", "wrapper",
        "callback", "injection", "option", "weight wrapper")


@pytest.mark.parametrize("how", WAYS)
def test_other_nodes_functions_cannot_be_identified(identity, model, how):
    assert identity.patches_of(put(model, how, foreign())).unknown == ("some_other_pack.patch",)
    assert identity.patches_of(model) == ("", ())


def test_nor_can_they_when_they_hide(identity, model):
    """In partial functions, bound methods, closures, containers, objects, patched models, and on the layers themselves."""
    function = foreign()
    thing = type("Thing", (), {"__module__": "some_other_pack"})()
    hidden = [functools.partial(function, 1), {"a": [function]}, thing, (i for i in ()), types.SimpleNamespace(f=function),
              put(model, "option", function)]
    for what in hidden:
        assert identity.patches_of(put(model, "option", what)).unknown, what
    layer = model.model.diffusion_model.out[2]
    layer.forward = types.MethodType(function, layer)
    assert identity.patches_of(model).unknown
    del layer.forward
    hook = layer.register_forward_hook(function)
    assert identity.patches_of(model).unknown
    hook.remove()
    assert identity.patches_of(model) == ("", ())


def test_values_are_told_apart(identity, model):
    values = [1, 1.5, True, "a", b"a", torch.ones(2), torch.zeros(2), [1], [1, 2], (1,), {"a": 1}, {"b": 1}, {1, 2}, torch.float16,
              torch.ones(2, dtype=torch.float64), torch.ones(2, 1)]
    found = [identity.patches_of(put(model, "option", v)) for v in values]
    assert not any(f.unknown for f in found) and len({f.digest for f in found}) == len(values)
    for value, first in zip(values, found, strict=True):
        again = value.clone() if isinstance(value, torch.Tensor) else value
        assert identity.patches_of(put(model, "option", again)) == first
    for nothing in ({}, [], {"a": {}, "b": [[]]}, None):
        assert identity.patches_of(put(model, "option", nothing)) == ("", ())
    loop: list = [1]
    loop.append(loop)
    assert identity.patches_of(put(model, "option", loop)).digest


def test_the_hosts_own_nodes_are_identified(identity, model):
    """Linear guidance, another sampling of noise levels, FreeU: by their settings."""
    from comfy_extras.nodes_freelunch import FreeU
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM
    from comfy_extras.nodes_video_model import VideoLinearCFGGuidance

    makers = [lambda v: VideoLinearCFGGuidance().patch(model, v)[0],
              lambda v: ModelSamplingContinuousEDM().patch(model, "v_prediction", 80.0 + v, 0.002)[0],
              lambda v: (FreeU.execute(model, 1.0 + v, 1.4, 0.9, 0.2).args if hasattr(FreeU, "execute") else
                         FreeU().patch(model, 1.0 + v, 1.4, 0.9, 0.2))[0]]
    seen = [identity.patches_of(make(v)) for make in makers for v in (1.0, 1.0, 1.25)]
    assert not any(s.unknown for s in seen), [s.unknown for s in seen]
    for first, same, other in (seen[i:i + 3] for i in (0, 3, 6)):
        assert first == same and first.digest != other.digest
    assert len({s.digest for s in seen}) == 6


def test_this_packs_patches_are_identified(pack, identity, loaded, model):
    """By what they do, whatever has been sampled with them."""
    drag, keeping = pack("host.signals.drag"), pack("host.keeping")
    points = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    makers = [lambda v: pack("host.attention.matching").attach_matching(loaded.model, loaded.weights.matching, "release", v),
              lambda v: pack("host.attention.matching").attach_matching(loaded.model, None, "cross-frame", v),
              lambda v: drag.apply_drag(model, points * v, 1.0, 0.0, 1.0),
              lambda v: keeping.attach_dual_clock(model, torch.ones(1, 1, HEIGHT, WIDTH) * v, 0.2, 0.6),
              lambda v: pack("host.signals.control").apply_control(
                  model, loaded.weights.encoder, torch.full((1, 32, 48, 3), v), 1.0, 0.0, 1.0, "release")]
    seen = [identity.patches_of(make(v)) for make in makers for v in (1.0, 1.0, 0.5)]
    assert not any(s.unknown for s in seen), [s.unknown for s in seen]
    for first, same, other in (seen[i:i + 3] for i in range(0, len(seen), 3)):
        assert first == same and first.digest != other.digest
    assert len({s.digest for s in seen}) == 2 * len(makers)
    branch = loaded.weights.matching.model
    before = identity.patches_of(loaded.model)
    with torch.inference_mode():
        next(iter(branch.parameters())).data.view(-1)[5] += 1
    assert identity.patches_of(loaded.model).digest != before.digest, "weights beside the network"


def test_a_run_leaves_the_identity(pack, identity, model):
    """Attention injection and skip-interval attention, before and after they were sampled with."""
    from framepainter_tests.networks import Edit, sample

    injection, skip = pack("host.attention.injection"), pack("host.attention.skip_interval")
    trajectory, karras = pack("core.inversion.trajectory"), pack("core.edm").karras_sigmas(2)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 2, 4, HEIGHT, WIDTH, generator=generator)
    host = pack("host.conditioning")
    positive, negative = host.svd_conditioning(torch.randn(1, 1, 16, generator=generator),
                                               torch.randn(1, 4, HEIGHT, WIDTH, generator=generator), host.MicroConds(8, 127, 0.02))
    source = trajectory.Trajectory(states, tuple(karras), pack("host.source").source_of(positive, 2),
                                   identity.model_digest(model, True))
    settings = pack("host.attention.injection_run").Settings(branches="one after another", coarse_scale=2)
    injected = injection.inject_attention(model, source, settings)
    later = skip.remember_edit(injected, skip.PastEdit(states[:2], positive, negative, source))
    found = [identity.patches_of(m) for m in (model, injected, later)]
    assert len({f.digest for f in found}) == 3 and not any(f.unknown for f in found)
    for patched in (injected, later):
        sample(patched, Edit(None, positive, negative, torch.zeros(2, 4, HEIGHT, WIDTH)), steps=2)
    assert [identity.patches_of(m) for m in (model, injected, later)] == found
    other = injection.inject_attention(model, replace(source, states=states + 1), settings)
    assert identity.patches_of(other).digest != found[1].digest


# ---- VAE and image encoder -------------------------------------------------------------------------------------------


def test_other_parts(identity, loaded):
    found = identity.part_of(loaded.vae)
    assert found == identity.part_of(loaded.vae) and not found.unknown
    assert not identity.part_of(loaded.clip_vision).unknown
    loaded.vae.decode = foreign()
    assert identity.part_of(loaded.vae).unknown == ("some_other_pack.patch",)
    del loaded.vae.decode

    class Wrapped:
        def __init__(self, vae):
            self.vae = vae

        def __getattr__(self, name):
            return getattr(self.vae, name)

    assert any("Wrapped" in name for name in identity.part_of(Wrapped(loaded.vae)).unknown)
    with torch.inference_mode():
        next(iter(loaded.vae.first_stage_model.parameters())).data.view(-1)[1] += 1
    assert identity.part_of(loaded.vae).digest != found.digest
