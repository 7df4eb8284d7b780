"""I2VEdit's motion LoRA against recorded values of the published code: layers, file form, effect, one training step."""

from __future__ import annotations

import json

import pytest
import torch
from framepainter_tests.golden import Case, of_kind, relative
from safetensors.torch import save_file


def each(kind: str):
    return pytest.mark.parametrize("case", of_kind("i2vedit", kind), ids=repr)


@pytest.fixture
def network(pack, tmp_path):
    """A case's UNet for training, on the host's layers, from a released-form file."""
    def make(case: Case, **settings):
        path = tmp_path / "unet.safetensors"
        save_file(case.network("unet"), str(path), metadata={"framepainter.head_width": "64",
                                                             "framepainter.group_norm_epsilon": "svd"})
        names, building, training = pack("core.weights.diffusers_svd"), pack("host.weights.building"), pack("host.training.network")
        ours = names.to_comfy(case.network("unet"))
        tensors = {ours[n]: t for n, t in case.network("unet").items()}
        model = building.build_unet(dict(tensors), torch.float32, 64, False)
        unet = pack("host.training.copies").plain_unet(model, torch.float32)
        return training.TrainingNetwork(unet, **settings).requires_grad_(False)

    return make


def put_lora(pack, case: Case, network, up: bool = True) -> dict:
    """The case's LoRA values on a network -> parameters by the published names, such as `...attn1.to_q.lora_up`."""
    lora, order = pack("core.training.lora"), pack("core.weights.motion_lora")
    rank = case.info["parameters"]["rank"]
    lora.add_lora(network.unet, rank, 0, layers=lora.temporal_layers(network.unet), normal=True)
    values = list(case.network("lora").items())
    layers = order.published_order([n for n, _ in network.unet.named_parameters() if "lora" not in n])
    assert len(values) == 2 * len(layers)
    out = {}
    with torch.no_grad():
        for i, layer in enumerate(layers):
            module = network.unet.get_submodule(layer)
            for (name, value), part in zip(values[2 * i:2 * i + 2], (module.lora_up, module.lora_down), strict=True):
                part.weight.copy_(value)
                if part is module.lora_up and not up:
                    part.weight.zero_()
                part.weight.requires_grad_(True)
                out[name.removesuffix(".weight")] = part.weight
    return out


@each("motion_lora")
def test_layers_and_their_order(pack, network, case: Case):
    targets = json.loads((case.folder / "targets.json").read_text(encoding="utf-8"))
    net = network(case)
    names = dict(net.unet.named_parameters())
    expected = [row[4] for row in targets["tiny"]]
    assert pack("core.weights.motion_lora").published_order(names) == expected
    assert set(pack("core.training.lora").temporal_layers(net.unet)) == set(expected)


@each("motion_lora")
def test_published_file_on_the_host_s_lora_loader(pack, network, case: Case):
    """The authors' file, converted, through ComfyUI's own LoRA loading, at two strengths."""
    import comfy.sd

    names = pack("core.weights.diffusers_svd").to_comfy(case.network("unet"))
    tensors = {names[n]: t for n, t in case.network("unet").items()}
    model = pack("host.weights.building").build_unet(dict(tensors), torch.float32, 64, False)
    shapes = {n: tuple(t.shape) for n, t in tensors.items()}
    converted = pack("core.weights.motion_lora").read_published(case.folder / "250_unet.pt", shapes)
    for scale in (1.0, 0.5):
        patched, _ = comfy.sd.load_lora_for_models(model, None, converted, scale, 0)
        net = pack("host.training.network").TrainingNetwork(pack("host.training.copies").plain_unet(patched, torch.float32))
        expected = case.tensors[f"output_scale_{scale}"]
        assert relative(predict(pack, net, case), expected) < case.info["tolerance"]["rms_relative"]
    net = pack("host.training.network").TrainingNetwork(pack("host.training.copies").plain_unet(model, torch.float32))
    assert relative(predict(pack, net, case), case.tensors["output_base"]) < case.info["tolerance"]["rms_relative"]


def predict(pack, net, case: Case) -> torch.Tensor:
    """v for a case's recorded network input, whose image channels may differ from frame to frame."""
    t = case.tensors
    embedding = pack("core.models.control_encoder").sinusoidal_embedding
    frames = t["sample"].shape[1]
    y = torch.cat([embedding(n, 256) for n in t["added_time_ids"].T], 1)
    with torch.no_grad():
        v = net.unet(t["sample"][0], timesteps=t["timestep"].repeat_interleave(frames),
                     context=t["image_embeds"].repeat_interleave(frames, 0), y=y.repeat_interleave(frames, 0),
                     transformer_options={"patches": {}}, num_video_frames=frames,
                     image_only_indicator=torch.zeros(1, frames))
    return v[None]


@each("motion_lora_training_step")
def test_noise_levels(pack, case: Case):
    found, expected = pack("core.training.motion_lora.objective").noise_level(case.tensors["u"]), case.tensors["sigma_of_u"]
    assert ((found - expected).abs() / expected).max() < case.info["tolerance"]["sigma_of_u"]["relative"]


@each("motion_lora_training_step")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", ["random", "fresh"])
def test_one_training_step(pack, network, variant: str, checkpointing: bool, case: Case):
    motion, loop = pack("core.training.motion_lora.objective"), pack("core.training.loop")
    t, info, tolerance = case.tensors, case.info["parameters"], case.info["tolerance"]
    net = network(case, checkpointing=checkpointing)
    parameters = put_lora(pack, case, net, up=variant == "random")
    clip = motion.MotionClip(0.18215 * t["video_posterior_sample"], t["first_frame_posterior_sample"][0], t["image_embeds"])
    seen = []

    def recorded(given):
        out = net(given)
        seen.append(out.v.detach())
        return out

    def loss():
        return motion.motion_loss(recorded, clip, torch.tensor([info["sigma"]]), t["noise"], t["condition_noise"][:, 0],
                                  torch.tensor([motion.MICRO_CONDS["release"]]))

    optimiser = info["optimiser"]
    trainer = loop.Trainer(parameters, loop.TrainSettings(
        learning_rate=optimiser["lr"], betas=tuple(optimiser["betas"]), weight_decay=optimiser["weight_decay"], clip=0.0))
    with torch.enable_grad():
        value = loss()
        trainer.optimizer.zero_grad()
        value.backward()
        gradients = {n: p.grad.clone() for n, p in parameters.items()}
        step = trainer.advance(lambda *_: {"loss": loss()})
    assert abs(float(value) / info["loss"][variant] - 1) < tolerance["loss"]["relative"]
    assert abs(step.losses["loss"] / info["loss"][variant] - 1) < tolerance["loss"]["relative"]
    assert relative(seen[0], t[f"network_output_{variant}"]) < tolerance["outputs"]["rms_relative"]
    checked = 0
    for name, expected in t.items():
        kind, _, layer = name.partition("|")
        if kind == f"grad_{variant}":
            floor = tolerance["gradients"]["zero_floor"]
            if expected.norm() < floor:
                assert gradients[layer].norm() < 10 * floor
            else:
                assert relative(gradients[layer], expected) < tolerance["gradients"]["rms_relative"], name
            checked += 1
        elif kind == f"updated_{variant}":
            close = (parameters[layer].detach() - expected).abs() <= tolerance["updated"]["max_abs"]
            assert close.float().mean() >= tolerance["updated"]["for_at_least"], name
            checked += 1
    assert checked == 8
    norms = case.info["tables"][f"gradient_norms_{variant}"]
    limit = tolerance["gradient_norms"]
    for module, *expected in norms["rows"]:
        for part, value in zip(("lora_up", "lora_down"), expected, strict=True):
            found = float(gradients[f"{module}.{part}"].norm())
            assert abs(found - value) <= limit["relative"] * value + limit["absolute"], (module, part)


@each("motion_lora_training_step")
def test_numbers_in_the_corrected_order(pack, network, case: Case):
    motion, t, info = pack("core.training.motion_lora.objective"), case.tensors, case.info["parameters"]
    net = network(case)
    put_lora(pack, case, net)
    clip = motion.MotionClip(0.18215 * t["video_posterior_sample"], t["first_frame_posterior_sample"][0], t["image_embeds"])
    with torch.no_grad():
        value = motion.motion_loss(net, clip, torch.tensor([info["sigma"]]), t["noise"], t["condition_noise"][:, 0],
                                   torch.tensor([motion.MICRO_CONDS["corrected"]]))
    assert abs(float(value) / info["loss_random_with_ids_6_127_0_02"] - 1) < case.info["tolerance"]["loss"]["relative"]
