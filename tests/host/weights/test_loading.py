"""Weight files: every form loads to the same outputs, every bad one is named with what was expected and found."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from framepainter_tests.golden import relative
from framepainter_tests.networks import Edit, sample
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def loading(pack):
    return pack("host.weights.loading")


@pytest.fixture(scope="module")
def saving(pack):
    return pack("host.weights.saving")


@pytest.fixture(scope="module")
def names(pack):
    return pack("core.weights.framepainter")


@pytest.fixture(scope="module")
def tensors(checkpoint) -> dict[str, torch.Tensor]:
    return load_file(str(checkpoint))


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tensors, names) -> tuple[Path, Path]:
    """The same weights as the authors publish theirs: a diffusers-named UNet and an encoder file."""
    folder = tmp_path_factory.mktemp("pair")
    unet = {n.removeprefix(names.UNET) for n in tensors if n.startswith(names.UNET)}
    matching = {n.removeprefix(names.MATCHING) for n in tensors if n.startswith(names.MATCHING)}
    back = names.join_diffusers_unet(unet, matching)
    files = folder / "unet.safetensors", folder / "encoder.safetensors"
    save_file({new: tensors[old if old.startswith(names.MATCHING) else names.UNET + old] for old, new in back.items()},
              str(files[0]))
    save_file({n.removeprefix(names.ENCODER): t for n, t in tensors.items() if n.startswith(names.ENCODER)},
              str(files[1]))
    return files


def load(loading, *files, dtype=torch.float32):
    with torch.inference_mode():
        return loading.load(*files, dtype)


def run(pack, loaded, edit: Edit, strokes) -> torch.Tensor:
    control = pack("host.signals.control")
    return sample(control.apply_control(loaded.model, loaded.weights.encoder, strokes, 0.8, 0, 1, "release"), edit)


def test_the_authors_two_files_and_one_file_agree(pack, loading, pair, checkpoint, edit, strokes):
    loaded = load(loading, *pair, checkpoint)
    assert torch.equal(run(pack, loaded, edit, strokes), run(pack, edit.loaded, edit, strokes))
    latent = torch.randn(2, 4, 8, 12)
    with torch.inference_mode():
        assert torch.equal(loaded.vae.decode(latent), edit.loaded.vae.decode(latent))


def test_saved_and_loaded_again_is_the_same(pack, loading, saving, edit, strokes, tmp_path):
    loaded = edit.loaded
    with torch.inference_mode():
        path = saving.save(tmp_path / "new" / "saved.safetensors", loaded.model, loaded.weights, loaded.clip_vision,
                            loaded.vae, {"note": "kept"})
    again = load(loading, path, None, None)
    assert torch.equal(run(pack, again, edit, strokes), run(pack, loaded, edit, strokes))
    picture = torch.rand(1, 40, 60, 3)
    conditioning = pack("host.conditioning")
    with torch.inference_mode():
        a, b = (conditioning.edit_conditioning(x.clip_vision, x.vae, picture, 64, 64, 6, 128, 0.02, 1)
                for x in (loaded, again))
    assert torch.equal(a.positive[0][0], b.positive[0][0])
    assert torch.equal(a.positive[0][1]["concat_latent_image"], b.positive[0][1]["concat_latent_image"])
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["note"] == "kept"
    assert [p.name for p in path.parent.iterdir()] == ["saved.safetensors"]


def test_saved_as_the_authors_do(pack, loading, saving, edit, strokes, pair, tmp_path):
    """The two files have the published names and shapes, hold the very weights, and give the same outputs."""
    loaded = edit.loaded
    with torch.inference_mode():
        unet, encoder = saving.save_pair(tmp_path / "mine.safetensors", loaded.model, loaded.weights, {"note": "kept"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine_encoder.safetensors", "mine_unet.safetensors"]
    for ours, theirs in zip((unet, encoder), pair, strict=True):
        a, b = load_file(str(ours)), load_file(str(theirs))
        assert a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())
    assert torch.equal(run(pack, load(loading, unet, encoder, None), edit, strokes), run(pack, loaded, edit, strokes))


def test_a_saved_file_without_clip_and_vae_says_so_when_used(loading, saving, edit, tmp_path):
    loaded = edit.loaded
    with torch.inference_mode():
        path = saving.save(tmp_path / "bare.safetensors", loaded.model, loaded.weights, None, None, {})
    again = load(loading, path, None, None)
    assert not hasattr(again.vae, "anything")  # the host may probe it
    for part, what in ((again.vae, "VAE"), (again.clip_vision, "CLIP_VISION")):
        with pytest.raises(loading.MissingPart, match=f"'bare.safetensors' holds no {what}.*clip_and_vae"):
            part.decode(None)


def test_a_lora_is_merged_into_the_saved_file(loading, saving, edit, names, tmp_path):
    name = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    changed = edit.loaded.model.clone()
    weight = changed.model.diffusion_model.state_dict()[name].clone()
    changed.add_patches({"diffusion_model." + name: ("diff", (torch.ones_like(weight),))}, 0.25)
    with torch.inference_mode():
        path = saving.save(tmp_path / "merged.safetensors", changed, edit.loaded.weights, None, None, {})
    assert torch.allclose(load_file(str(path))[names.UNET + name], weight + 0.25)


@pytest.fixture(params=[False, True], ids=["", "paged"])
def paged(request, monkeypatch) -> bool:
    """With and without the newer host's dynamic VRAM, under which its layers make no weights of their own."""
    try:
        import comfy.memory_management as memory
    except ImportError:
        return False
    monkeypatch.setattr(memory, "aimdo_enabled", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precisions(pack, loading, checkpoint, edit, strokes, dtype, paged):
    loaded = load(loading, checkpoint, None, None, dtype=dtype)
    assert loaded.model.model.get_dtype() == dtype
    # Paged in, the host keeps a UNet's weights as the file has them and casts them on their way to the card.
    unet = [] if paged else [loaded.model.model.diffusion_model]
    for part in (*unet, loaded.weights.matching.model, loaded.weights.encoder.model):
        assert {p.dtype for n, p in part.named_parameters() if "mix_factor" not in n} == {dtype}
    assert relative(run(pack, loaded, edit, strokes), run(pack, edit.loaded, edit, strokes)) < 0.05


def test_epsilon_follows_the_file(loading, saving, names, tensors, edit, tmp_path):
    """diffusers' GroupNorm epsilon for FramePainter weights, unless the file was made from stock SVD."""
    path = tmp_path / "svd_epsilon.safetensors"
    save_file(tensors, str(path), metadata={"framepainter.group_norm_epsilon": "svd"})
    norm = "input_blocks.1.0.in_layers.0"
    for loaded, epsilon in ((edit.loaded, 1e-6), (load(loading, path, None, None), 1e-5)):
        assert loaded.model.model.diffusion_model.get_submodule(norm).eps == epsilon
    with torch.inference_mode():
        saved = saving.save(tmp_path / "again.safetensors", load(loading, path, None, None).model,
                             edit.loaded.weights, None, None, {})
    assert load(loading, saved, None, None).model.model.diffusion_model.get_submodule(norm).eps == 1e-5


@pytest.mark.parametrize("name, change, message", [
    ("VAE", "encoder.conv_out.weight", "VAE: missing encoder.conv_out.weight"),
    ("VAE", "decoder.mid.block_1.conv1.weight", "VAE: missing decoder.mid.block_1.conv1.weight"),
    ("VAE", "decoder.conv_out.weight", "VAE: missing decoder.conv_out.weight"),
    ("VAE", "+decoder.mid.block_1.conv1.weight", "VAE: .*size mismatch for decoder.mid.block_1.conv1.weight"),
    ("CLIP_VISION", "visual_projection.weight", "CLIP image encoder: missing visual_projection.weight"),
    ("CLIP_VISION", "vision_model.encoder.layers.1.mlp.fc1.weight",
     "CLIP image encoder: missing vision_model.encoder.layers.1.mlp.fc1.weight"),
])
def test_incomplete_clip_and_vae(loading, names, tensors, tmp_path, name, change, message):
    """A hole in the parts that the host builds would otherwise be filled with whatever was in memory."""
    full = getattr(names, name) + change.lstrip("+")
    changed = {n: t for n, t in tensors.items() if n != full}
    if change.startswith("+"):
        changed[full] = torch.zeros(*tensors[full].shape[:-1], 5)
    path = tmp_path / "parts.safetensors"
    save_file(changed, str(path))
    with pytest.raises(loading.WeightsError, match=f"'parts.safetensors' is not a complete {message}"):
        load(loading, path, None, None)


def test_clip_and_vae_of_another_family(loading, names, tensors, checkpoint, tmp_path):
    path = tmp_path / "sd15.safetensors"
    save_file({n: t for n, t in tensors.items() if n.startswith(names.VAE)} | {
        names.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": torch.zeros(1)}, str(path))
    with pytest.raises(loading.WeightsError, match="'sd15.safetensors' holds a Stable Diffusion image checkpoint; "
                                                   "expected a Stable Video Diffusion checkpoint"):
        load(loading, checkpoint, None, path)


def _truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * keep)])


def _without(path: Path, part: str) -> None:
    kept = load_file(str(path))
    del kept[next(n for n in kept if part in n)]
    save_file(kept, str(path))


def _widen(path: Path, part: str) -> None:
    changed = load_file(str(path))
    name = next(n for n in changed if part in n)
    changed[name] = torch.zeros(*changed[name].shape[:-1], changed[name].shape[-1] + 1)
    save_file(changed, str(path))


def _extra(path: Path, name: str) -> None:
    save_file({**load_file(str(path)), name: torch.zeros(3)}, str(path))


BAD_UNETS = {
    "missing": (lambda p: p.unlink(), "does not exist"),
    "empty": (lambda p: p.write_bytes(b""), r"expected a safetensors file, found an empty file \(0 bytes\)"),
    "pickle": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(100)), "a PyTorch pickle.*does not open"),
    "page": (lambda p: p.write_bytes(b"<!DOCTYPE html>" + bytes(100)), "a web page or a Git LFS pointer"),
    "cut": (lambda p: _truncate(p, 0.6), r"cut off.*\d+ bytes expected, \d+ found.*Download it again"),
    "cut early": (lambda p: _truncate(p, 0.0005), "ends inside its header"),
    "hole": (lambda p: _without(p, "up_blocks.1.attentions.0.proj_in.weight"),
             "not a complete FramePainter UNet: missing output_blocks.3.1.proj_in.weight"),
    "two holes": (lambda p: (_without(p, "conv_out.bias"), _without(p, "mid_block.attentions.0.proj_out.bias")),
                  r"missing middle_block.1.proj_out.bias \[128\]; missing out.2.bias \[4\]"),
    "hole in the branch": (lambda p: _without(p, "mid_block.attentions.0.transformer_blocks.0.sparse_attention.to_k"),
                           r"missing middle_block.1.transformer_blocks.0.to_k.weight \[128, 128\]"),
    "stranger": (lambda p: _extra(p, "extra.weight"), "1 names have no place.*extra.weight"),
    "wrong shape": (lambda p: _widen(p, "mid_block.resnets.0.spatial_res_block.conv1.weight"),
                    r"middle_block.0.in_layers.2.weight is \[128, 128, 3, 4\], expected \[128, 128, 3, 3\]"),
}


@pytest.mark.parametrize("kind", BAD_UNETS)
def test_bad_unet_file(loading, pair, tmp_path, kind):
    spoil, message = BAD_UNETS[kind]
    path = tmp_path / "my_unet.safetensors"
    shutil.copy(pair[0], path)
    spoil(path)
    with pytest.raises(loading.WeightsError, match=f"my_unet.safetensors.*{message}"):
        load(loading, path, pair[1], None)


@pytest.mark.parametrize("kind, message", {
    "encoder": "holds a FramePainter control encoder; expected the authors' FramePainter UNet.*Yabo/FramePainter",
    "plain": "holds a plain SVD UNet without matching attention",
    "svd": "is Stable Video Diffusion itself, which has no control encoder.*as 'clip_and_vae'",
    "sd": "holds a Stable Diffusion image checkpoint",
    "sdxl": "holds an SDXL checkpoint",
    "other": "holds 1 other tensors, the first 'lora.up'",
}.items())
def test_another_kind_of_file(loading, names, tensors, pair, tmp_path, kind, message):
    path = tmp_path / "chosen.safetensors"
    one = torch.zeros(1)
    content = {
        "encoder": load_file(str(pair[1])),
        "plain": {n: t for n, t in load_file(str(pair[0])).items() if "sparse_attention" not in n},
        "svd": {n: t for n, t in tensors.items() if not n.startswith("framepainter.")},
        "sd": {names.UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": one},
        "sdxl": {names.UNET + "middle_block.1.transformer_blocks.9.attn1.to_q.weight": one},
        "other": {"lora.up": one},
    }[kind]
    save_file(content, str(path))
    with pytest.raises(loading.WeightsError, match=f"'chosen.safetensors' {message}"):
        load(loading, path, pair[1], None)


def test_stable_video_diffusion_itself(pack, loading, names, tensors, edit, strokes, tmp_path):
    """Loaded as it is: core's network with core's epsilons, CLIP vision and VAE, and no trained parts of ours."""
    path, stock = tmp_path / "svd.safetensors", tmp_path / "stock.safetensors"
    plain = {n: t for n, t in tensors.items() if not n.startswith("framepainter.")}
    save_file(plain, str(path))
    loaded = load(loading, path, None, None)
    weights = loaded.model.model.diffusion_model.state_dict()
    assert weights.keys() == {n.removeprefix(names.UNET) for n in plain if n.startswith(names.UNET)}
    assert all(torch.equal(t, plain[names.UNET + n]) for n, t in weights.items())
    save_file(tensors, str(stock), metadata={"framepainter.group_norm_epsilon": "svd"})
    without = pack("host.attention.matching").attach_matching(load(loading, stock, None, None).model, None, "off", 1.0)
    assert torch.equal(sample(loaded.model, edit), sample(without, edit))
    with torch.inference_mode():
        assert loaded.vae.decode(torch.zeros(1, 4, 8, 8)).shape[-1] == 3
    copy = loading._load_unet(path, torch.float32)
    assert all(torch.equal(t, copy.model.diffusion_model.state_dict()[n]) for n, t in weights.items())
    with pytest.raises(loading.MissingPart, match="'svd.safetensors' is Stable Video Diffusion itself and holds no control "
                                                  "encoder. For edits of a picture choose the authors' FramePainter UNet"):
        run(pack, loaded, edit, strokes)
    _without(path, "out.2.bias")
    with pytest.raises(loading.WeightsError, match=r"not a complete Stable Video Diffusion checkpoint: missing out.2.bias"):
        load(loading, path, None, None)


def test_bad_encoders(loading, names, tensors, pair, tmp_path):
    with pytest.raises(loading.WeightsError, match="'unet.safetensors' holds no control encoder. Choose one as 'encoder_file'"):
        load(loading, pair[0], None, None)
    with pytest.raises(loading.WeightsError, match="'unet.safetensors' holds a FramePainter UNet; expected the authors' "
                                                   "control encoder"):
        load(loading, pair[0], pair[0], None)
    hole = tmp_path / "hole.safetensors"
    shutil.copy(pair[1], hole)
    _without(hole, "down_res.1.conv2.weight")
    with pytest.raises(loading.WeightsError, match="'hole.safetensors' is not a complete control encoder: missing "
                                                   "down_res.1.conv2.weight"):
        load(loading, pair[0], hole, None)
    wide = {n: t for n, t in load_file(str(pair[1])).items()}
    wide["mid_convs.1.weight"], wide["mid_convs.1.bias"] = torch.zeros(320, 256, 1, 1), torch.zeros(320)
    save_file(wide, str(tmp_path / "wide.safetensors"))
    with pytest.raises(loading.WeightsError, match="'wide.safetensors' is a control encoder for a UNet of 320 channels; "
                                                   "the chosen UNet has 64"):
        load(loading, pair[0], tmp_path / "wide.safetensors", None)


def test_networks_of_different_widths_do_not_mix(pack, loading, edit, strokes):
    patches, control, managed = pack("host.attention.matching"), pack("host.signals.control"), pack("host.models.managed").managed
    wrong_model = pack("host.models.network").WrongModel
    widths = edit.loaded.weights.encoder.model.widths._replace(out=320)
    encoder = managed(pack("core.models.control_encoder").ControlEncoder(widths))
    with pytest.raises(wrong_model, match="encoder gives 320 channels, the model's first level has 64"):
        control.apply_control(edit.loaded.model, encoder, strokes, 0.8, 0, 1, "release")
    one_block = pack("core.attention.matching").MatchingBranch({"middle_block.1.transformer_blocks.0": 64}, 64)
    branch = managed(one_block)
    with pytest.raises(wrong_model, match=r"another network \(1 blocks, widths \[64\]; this model has 16 blocks"):
        patches.attach_matching(edit.loaded.model, branch, "release", 1.0)


def test_no_room_on_the_disk(loading, saving, edit, tmp_path, monkeypatch):
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1_000_000))
    with pytest.raises(loading.WeightsError, match=r"full.safetensors' needs 0.1\d GB, the disk has 0.00 GB free"):
        saving.save(tmp_path / "full.safetensors", edit.loaded.model, edit.loaded.weights, None, None, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("kind", ["save", "save_pair"])
def test_a_disk_that_fills_up_leaves_nothing(pack, saving, edit, tmp_path, kind):
    """The system refuses to let a file grow, in the middle of writing it."""
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    parts = (edit.loaded.model, edit.loaded.weights, *((None, None) if kind == "save" else ()), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(pack("core.atomic").WriteError, match="x.*safetensors' could not be written"), torch.inference_mode():
            getattr(saving, kind)(tmp_path / "x.safetensors", *parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_newer_hosts_can_ask_for_an_independent_copy(loading, checkpoint, edit):
    """The factory that such a host keeps gives the same weights in another module, whole ones if it asks so."""
    copy = loading._load_unet(checkpoint, torch.float32, disable_dynamic=True)
    assert copy.model is not edit.loaded.model.model
    ours, theirs = edit.loaded.model.model.state_dict(), copy.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in ours.items())
    kept = getattr(edit.loaded.model, "cached_patcher_init", None)
    assert kept is None or kept == (loading._load_unet, (checkpoint, torch.float32))


@pytest.mark.parametrize("flag, dtype", [("bf16_unet", torch.bfloat16), ("fp16_unet", torch.float16),
                                         ("fp32_unet", torch.float32)])
def test_the_hosts_dtype_options_are_followed(loading, checkpoint, monkeypatch, flag, dtype):
    from comfy.cli_args import args

    monkeypatch.setattr(args, flag, True)
    loaded = load(loading, checkpoint, None, None, dtype=None)
    parts = (loaded.model.model.diffusion_model, loaded.weights.matching.model, loaded.weights.encoder.model)
    assert [next(p.parameters()).dtype for p in parts] == [dtype] * 3
