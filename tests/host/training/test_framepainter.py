"""The training network against the host's own model, and what training does to models and to frozen weights."""

from __future__ import annotations

import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.networks import Edit, sample

H, W = 8, 12  # latent size; spatial attention sees 96 and 24 tokens, two frames


@pytest.fixture(scope="module")
def control(pack):
    return pack("host.signals.control")


@pytest.fixture(scope="module")
def training_run(pack):
    return pack("host.training.run")


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    """The tiny checkpoint, loaded in inference mode as a server does."""
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def trainer(pack):
    return pack("host.training.framepainter")


@pytest.fixture(scope="module")
def presets(pack):
    return pack("core.training.framepainter.presets")


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def settings(presets, **changes):
    return presets.choose("small network", **{"steps": 3, "batch": 1, **changes})


def inputs(pack, seed: int = 0):
    """What the network is shown of one pair at sigma 1.5, with control, and sigma."""
    g = torch.Generator().manual_seed(seed)
    sigma = torch.tensor([1.5])
    control = torch.zeros(1, 3, 8 * H, 8 * W)
    control[:, :, 20:40, 30:34] = 1.0
    return pack("core.training.network").NetworkInput(
        torch.randn(1, 2, 4, H, W, generator=g), 0.25 * sigma.log(), torch.randn(1, 4, H, W, generator=g),
        torch.randn(1, 1, 16, generator=g), control), sigma


def host_v(model, given, sigma, options=None):
    """v by the host's own model code: apply_model gives x / (s^2 + 1) - v s / sqrt(s^2 + 1) of the noisy latents x."""
    import comfy.model_management as mm

    image, embedding = given.image, given.embedding
    root = (sigma**2 + 1).sqrt()
    z = given.x[0] * root
    with torch.inference_mode():
        mm.load_models_gpu([model, *(m for m in model.model_patches_models())])
        model.pre_run()
        y = model.model.encode_adm(fps=7, motion_bucket_id=128, augmentation_level=0.02)
        options = model.model_options["transformer_options"] | {"cond_or_uncond": [0], "sigmas": sigma, **(options or {})}
        denoised = model.model.apply_model(
            z, sigma.expand(2), c_concat=image.expand(2, -1, -1, -1), c_crossattn=embedding.expand(2, -1, -1),
            transformer_options=options, y=y.expand(2, -1), num_video_frames=2)
        model.cleanup()
    return ((z / root**2 - denoised) * root / sigma).clone()


def test_without_extras_it_is_the_hosts_unet(pack, loaded, trainer, presets):
    plain = pack("host.attention.matching").attach_matching(loaded.model, None, "off", 1.0)
    network = trainer.make_network(loaded.model, loaded.weights, settings(presets))
    network.matching = None
    given, sigma = inputs(pack)
    v, attention = network(given._replace(control=None))
    assert not attention
    assert torch.allclose(v[0], host_v(plain, given, sigma), atol=1e-5)


@pytest.mark.parametrize("semantics", ["release", "paper"])
def test_with_control_and_matching_it_is_the_patched_model(pack, control, loaded, trainer, presets, semantics):
    patches = pack("host.attention.matching")
    given, sigma = inputs(pack)
    model = patches.attach_matching(loaded.model, loaded.weights.matching, semantics, 1.0)
    model = control.apply_control(model, loaded.weights.encoder, given.control.movedim(1, -1), 1.0, 0.0, 1.0, semantics)
    network = trainer.make_network(loaded.model, loaded.weights, settings(presets, semantics=semantics))
    expected = host_v(model, given, sigma)
    assert torch.allclose(network(given).v[0], expected, atol=1e-5)
    other = "paper" if semantics == "release" else "release"
    network.targets_only = other == "paper"
    assert not torch.allclose(network(given).v[0], expected, atol=1e-3)  # the two do differ here


def test_videos_of_a_batch_do_not_mix(pack, loaded, trainer, presets):
    network = trainer.make_network(loaded.model, loaded.weights, settings(presets))
    (a, _), (b, _) = inputs(pack, 0), inputs(pack, 1)
    b = b._replace(t=b.t + 0.3)  # another noise level
    given = [torch.cat(pair) for pair in zip(a[:5], b[:5], strict=True)]
    both = network(type(a)(*given)).v
    for one, together in zip((a, b), both, strict=True):
        assert torch.allclose(network(one).v[0], together, atol=1e-5)


def backward(network, given):
    """Loss and gradients of something that depends on v and on every recorded query and key."""
    v, attention = network(given._replace(record=True))
    loss = v.square().mean() + sum((site.q.square().mean() + (site.k**3).mean()) for site in attention)
    network.zero_grad()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}, attention


def test_checkpointing_changes_nothing(pack, loaded, trainer, presets):
    given, _ = inputs(pack)
    results = [backward(trainer.make_network(loaded.model, loaded.weights, settings(presets, checkpointing=on)), given)
               for on in (False, True)]
    (loss, gradients, asked), (loss_2, gradients_2, asked_2) = results
    assert loss == loss_2 and gradients.keys() == gradients_2.keys()
    assert all(torch.allclose(g, gradients_2[n], atol=1e-7) for n, g in gradients.items())
    assert [a.site for a in asked] == [a.site for a in asked_2] and len(asked) == 4


def test_checkpointing_covers_temporal_blocks(pack, loaded, trainer, presets):
    """Spatial and temporal attention and both convolutions run twice with it, once without."""
    given, _ = inputs(pack)
    for on, times in ((False, 1), (True, 2)):
        network = trainer.make_network(loaded.model, loaded.weights, settings(presets, checkpointing=on))
        counts: dict[str, int] = {}
        kinds = ("transformer_blocks.0.attn1.to_q", "time_stack.0.attn1.to_q", "time_stack.in_layers.2", ".in_layers.2")
        for name, module in network.unet.named_modules():
            if name.endswith(kinds):
                counts[name] = 0

                def count(*_, name=name, counts=counts):
                    counts[name] += 1

                module.register_forward_hook(count)
        backward(network, given)
        assert {kind for kind in kinds if any(n.endswith(kind) for n in counts)} == set(kinds)
        assert set(counts.values()) == {times}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recorded_attention_reaches_the_weights(pack, loaded, trainer, presets, checkpointing):
    """The matching loss alone trains the branch's queries and keys, and through them the UNet before it."""
    network = trainer.make_network(loaded.model, loaded.weights, settings(presets, checkpointing=checkpointing))
    given, _ = inputs(pack)
    asked = network(given._replace(record=True)).attention
    assert all(site.q.shape[1] == 2 and site.q.shape[-1] == 32 for site in asked)
    sum(site.q.square().mean() + site.k.square().mean() for site in asked).backward()
    for site in asked:
        branch = network.matching.at(site.site)
        assert branch.to_q.weight.grad.abs().max() > 0 and branch.to_k.weight.grad.abs().max() > 0
        assert branch.to_v.weight.grad is None or site.site != asked[-1].site
    assert network.unet.input_blocks[0][0].weight.grad.abs().max() > 0


def test_attention_without_gradients_is_not_used(pack, loaded, trainer, presets, monkeypatch):
    """A server started with sage attention: forward only, so training takes torch's."""
    from comfy.ldm.modules import attention

    given, _ = inputs(pack)
    network = trainer.make_network(loaded.model, loaded.weights, settings(presets))
    expected = backward(network, given)

    @attention.wrap_attn
    def attention_sage(*args, **kwargs):
        raise AssertionError("cannot be differentiated")

    monkeypatch.setattr(attention, "optimized_attention", attention_sage)
    found = backward(network, given)
    assert torch.allclose(found[0], expected[0], rtol=1e-4)
    assert all(torch.allclose(g, found[1][n], atol=1e-4) for n, g in expected[1].items())


# ---- copies ----------------------------------------------------------------------------------------------------------


def state(model) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {n: t.clone() for n, t in model.model.state_dict().items()}


def test_copies_are_ordinary_tensors_of_their_own(training_run, loaded, trainer, presets):
    with torch.inference_mode(), training_run.differentiable():
        network = trainer.make_network(loaded.model, loaded.weights, settings(presets))
    theirs = {t.data_ptr() for m in (loaded.model, loaded.weights.matching, loaded.weights.encoder)
              for t in m.model.state_dict().values()}
    for name, parameter in network.named_parameters():
        assert not parameter.is_inference() and parameter.device.type == "cpu", name
        assert parameter.data_ptr() not in theirs, name


def test_loras_on_the_model_are_merged(loaded, trainer, presets):
    """Whether the model rests or is loaded with the LoRA written into its weights."""
    import comfy.model_management as mm

    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    change = torch.randn(32, 32)
    patched = loaded.model.clone()
    with torch.inference_mode():
        patched.add_patches({key: (change,)}, 0.5)
    plain = loaded.model.model.state_dict()[key].clone()
    for on in (False, True):
        if on:
            with torch.inference_mode():
                mm.load_models_gpu([patched])
        unet = pack_unet(trainer, presets, patched)
        assert torch.allclose(unet.get_parameter(key.removeprefix("diffusion_model.")), plain + 0.5 * change, atol=1e-6)
        again = pack_unet(trainer, presets, loaded.model)
        assert torch.equal(again.get_parameter(key.removeprefix("diffusion_model.")), plain)
    patched.detach()


def pack_unet(trainer, presets, model):
    return trainer.make_network(model, None, settings(presets)).unet


def test_started_from_a_plain_model_nothing_is_changed_at_first(pack, loaded, trainer, presets):
    """Matching attention starts as a copy of the spatial one with its output closed."""
    network = trainer.make_network(loaded.model, None, settings(presets))
    given, sigma = inputs(pack)
    plain = pack("host.attention.matching").attach_matching(loaded.model, None, "off", 1.0)
    assert torch.allclose(network(given._replace(control=None)).v[0], host_v(plain, given, sigma), atol=1e-5)
    site = network.matching.sites[0]
    assert torch.equal(network.matching.at(site).to_q.weight, network.unet.get_submodule(site).attn1.to_q.weight)


def test_weights_of_another_network_are_refused(pack, loaded, trainer, presets, checkpoint):
    with torch.inference_mode():
        other = pack("host.weights.loading").load(checkpoint, None, None, torch.float32)
    with pytest.raises(pack("host.models.network").WrongModel, match="'framepainter' belongs to another network"):
        trainer.make_network(loaded.model, other.weights, settings(presets))


def test_other_models_are_refused(pack, trainer, presets):
    from framepainter_tests.image_models import image_model

    with pytest.raises(pack("host.models.network").WrongModel, match="the 'model' input is a BaseModel"):
        trainer.make_network(image_model("SD15"), None, settings(presets))


# ---- training --------------------------------------------------------------------------------------------------------


def batch(pack, count: int = 1, h: int = 4, w: int = 6):
    g = torch.Generator().manual_seed(3)
    index = tiny.samples(pack, count, 8 * h, 8 * w)
    control = torch.stack([s.sketch for s in index]).mul(255).to(torch.uint8)
    return pack("core.training.examples").Examples(
        torch.randn(count, 2, 4, h, w, generator=g), torch.randn(count, 4, h, w, generator=g),
        torch.randn(count, 1, 16, generator=g), control, torch.stack([s.flow for s in index]),
        torch.stack([s.visible for s in index]))


def trained(network) -> dict[str, torch.nn.Parameter]:
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def fixed_batch_losses(pack, network, steps: int):
    """A few steps on one batch with the same noise every time."""
    objective, loop = pack("core.training.framepainter.objective"), pack("core.training.loop")
    fixed, aim = batch(pack), objective.Objective(drop_image=0, drop_control=0)
    run = loop.Trainer(trained(network), loop.TrainSettings(learning_rate=3e-3, weight_decay=0.0))
    return [run.advance(lambda *_: objective.losses(network, fixed, aim, torch.Generator().manual_seed(1))).losses
            for _ in range(steps)]


@pytest.mark.parametrize("what", ["everything", "matching and encoder", "matching, encoder and LoRA"])
def test_each_option_trains_and_leaves_the_rest(pack, loaded, trainer, presets, what):
    """On a fixed batch the loss falls; frozen weights keep their bits."""
    chosen = settings(presets, what_trains=what, checkpointing=True)
    network = trainer.make_network(loaded.model, None, chosen)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    values = fixed_batch_losses(pack, network, 8)
    for part in ("loss", "matching"):
        assert values[-1][part] < values[0][part] - 0.005, (part, [v[part] for v in values])
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert not changed & frozen
    assert changed >= {n for n in before if n.startswith(("matching.", "encoder.")) and n.endswith("weight")}
    assert all(n.startswith("unet.") and "lora" not in n for n in frozen) and bool(frozen) == (what != "everything")
    assert ("lora" in " ".join(changed)) == what.endswith("LoRA")


def test_mixed_precision(pack, loaded, trainer, presets):
    """bf16 arithmetic: frozen matrices in bf16, what trains in fp32, nearly the losses of fp32."""
    found = {}
    for precision in ("fp32", "bf16"):
        chosen = settings(presets, what_trains="matching and encoder", precision=precision)
        network = trainer.make_network(loaded.model, loaded.weights, chosen)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        for parameter in network.parameters():
            assert parameter.dtype == (dtype if parameter.ndim > 1 and not parameter.requires_grad else torch.float32)
        found[precision] = fixed_batch_losses(pack, network, 2)
    for a, b in zip(*found.values(), strict=True):
        assert all(a[name] == pytest.approx(b[name], rel=0.03) and a[name] != b[name] for name in a)


@pytest.mark.parametrize("what", ["everything", "matching, encoder and LoRA"])
def test_what_was_trained_comes_out(pack, control, training_run, loaded, trainer, presets, what):
    """The exported models answer as the trained network does; those that came in have not changed a bit."""
    chosen = settings(presets, what_trains=what)
    before = [state(m) for m in (loaded.model, loaded.weights.matching, loaded.weights.encoder)]
    network = trainer.make_network(loaded.model, loaded.weights, chosen)
    with torch.no_grad():
        for i, parameter in enumerate(trained(network).values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    tensors = {n: p.detach().clone() for n, p in network.named_parameters()}
    given, sigma = inputs(pack)
    with torch.inference_mode():
        model, weights = trainer.export(training_run.RunResult(tensors, 1), loaded.model, chosen, "mine")
        model = control.apply_control(model, weights.encoder, given.control.movedim(1, -1), 1.0, 0.0, 1.0, "release")
    assert torch.allclose(host_v(model, given, sigma), network(given).v[0], atol=2e-5)
    after = [state(m) for m in (loaded.model, loaded.weights.matching, loaded.weights.encoder)]
    assert all(torch.equal(t, new[n]) for old, new in zip(before, after, strict=True) for n, t in old.items())


def test_saved_files_load_to_the_same(pack, training_run, loaded, trainer, presets, tmp_path):
    """The single file and the two files of the authors' form, from a trained network."""
    chosen = settings(presets)
    network = trainer.make_network(loaded.model, loaded.weights, chosen)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 1.01
    saving, loading, conditioning = (
        pack(f"host.{m}") for m in ("weights.saving", "weights.loading", "conditioning"))
    picture = torch.rand(1, 64, 96, 3)
    with torch.inference_mode():
        finished = training_run.RunResult({n: p.detach() for n, p in network.named_parameters()}, 1)
        model, weights = trainer.export(finished, loaded.model, chosen, "mine")
        made = conditioning.edit_conditioning(loaded.clip_vision, loaded.vae, picture, 64, 96, 6, 128, 0.02, 0)
        single = saving.save(tmp_path / "one.safetensors", model, weights, loaded.clip_vision, loaded.vae, {})
        pair = saving.save_pair(tmp_path / "two.safetensors", model, weights, {})
        models = [model, loading.load(single, None, None, torch.float32).model,
                  loading.load(*pair, single, torch.float32).model]
    outs = [sample(m, Edit(None, made.positive, made.negative, made.latent["samples"])) for m in models]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_lora_file_does_what_the_merged_model_does(pack, training_run, loaded, trainer, presets):
    import comfy.sd

    chosen = settings(presets, what_trains="matching, encoder and LoRA")
    network = trainer.make_network(loaded.model, loaded.weights, chosen)
    with torch.no_grad():
        for name, parameter in trained(network).items():
            if name.endswith("lora_up.weight"):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    finished = training_run.RunResult({n: p.detach().clone() for n, p in network.named_parameters()}, 1)
    with torch.inference_mode():
        merged, _ = trainer.export(finished, loaded.model, chosen, "mine")
        with_lora, _ = comfy.sd.load_lora_for_models(loaded.model, None, trainer.lora_tensors(finished), 1.0, 0.0)
    ours = pack("host.training.copies").plain_unet(merged, torch.float32).state_dict()
    theirs = pack("host.training.copies").plain_unet(with_lora, torch.float32).state_dict()
    plain = pack("host.training.copies").plain_unet(loaded.model, torch.float32).state_dict()
    assert all(torch.allclose(t, theirs[n], atol=1e-5) for n, t in ours.items())
    assert sum(not torch.equal(t, plain[n]) for n, t in theirs.items()) == len(
        pack("core.training.lora").attention_layers(network.unet))
