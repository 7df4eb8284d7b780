"""Motion LoRA nodes: what trains, what an interrupted run comes to, what files come out and go in."""

from __future__ import annotations

import json

import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.runs import IDENTITIES, identity

SETTINGS = {"preset": "small network", "steps": 6, "learning_rate": 2e-3, "rank": 4, "strength": 1.0, "seed": 0, "save_every": 2}


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture(scope="module")
def frames():
    """Four frames of a bright bar that moves."""
    out = torch.full((4, 32, 48, 3), 0.2)
    for i in range(4):
        out[i, 8:24, 6 + 6 * i:14 + 6 * i] = torch.tensor([0.9, 0.5, 0.1])
    return out


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def train(pack, loaded, frames, output):
    def run(**changes):
        with torch.inference_mode():
            given = {"model": loaded.model, "clip_vision": loaded.clip_vision, "vae": loaded.vae, "frames": frames, **SETTINGS}
            return pack("nodes.motion_lora").TrainMotionLora.execute(**{**given, **changes}).result

    return run


def weights(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.model.diffusion_model.named_parameters()}


def test_trains_the_temporal_layers_and_nothing_else(pack, train, loaded, output):
    before = weights(loaded.model)
    model, lora, curve, previews, report = train(preview_every=3)
    after = weights(loaded.model)
    assert all(torch.equal(before[n], after[n]) for n in before) and not loaded.model.patches
    ups = {n: t for n, t in lora.items() if n.endswith("lora_up.weight")}
    wanted = pack("core.weights.motion_lora").published_order(before)
    assert {n.removeprefix("diffusion_model.").removesuffix(".lora_up.weight") for n in ups} == set(wanted)
    # A single context token gives its queries and keys no gradient; everything else has moved from zero.
    still = {n for n, t in ups.items() if float(t.abs().max()) == 0}
    assert all(".attn2.to_q." in n or ".attn2.to_k." in n for n in still)
    patched = {k.removeprefix("diffusion_model.").removesuffix(".weight") for k in model.patches}
    assert patched == set(wanted)
    assert curve.std() > 0.01 and previews.shape[1] == 2 * 32 and previews.std() > 0.01
    assert "6 steps" in report
    with pytest.raises(StopIteration):
        next(p for p in output.rglob("*.partial"))


def test_loss_falls_on_the_clip(pack, train):
    from pathlib import Path

    report = train(steps=60, learning_rate=5e-3, rank=8, dropout=0.0)[4]
    log = Path(report.splitlines()[-1].removeprefix("file: ")).parent / "stats.jsonl"
    losses = [json.loads(line)["losses"]["loss"] for line in log.read_text().splitlines()]
    assert len(losses) == 60
    assert sum(losses[-20:]) < 0.9 * sum(losses[:20])


def test_an_equal_run_is_not_trained_again(train, monkeypatch, pack):
    _, first, *_ = train()
    monkeypatch.setattr(pack("host.training.motion_lora"), "run", lambda *a: pytest.fail("trained again"))
    model, second, _, _, report = train(strength=0.5)
    assert all(torch.equal(first[n], second[n]) for n in first) and "finished earlier" in report
    assert {patch[0] for patches in model.patches.values() for patch in patches} == {0.5}


def test_a_cancelled_run_goes_on_to_the_same_lora(pack, train, monkeypatch, output):
    """With dropout, whose randomness must be the step's own."""
    import comfy.model_management as mm

    _, whole, *_ = train()
    for folder in (output / "framepainter_motion").iterdir():
        folder.rename(output / "kept")

    def interrupt():
        if any(len(log.read_text().splitlines()) >= 3 for log in (output / "framepainter_motion").glob("*/stats.jsonl")):
            raise mm.InterruptProcessingException

    with monkeypatch.context() as patched, pytest.raises(mm.InterruptProcessingException):
        patched.setattr(mm, "throw_exception_if_processing_interrupted", interrupt)
        train()
    (folder,) = (output / "framepainter_motion").iterdir()
    assert [p.name for p in folder.glob("state-*")], "nothing was saved"
    _, resumed, *_ = train()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


def test_other_frames_are_another_run(train, frames, output):
    train(steps=1)
    train(steps=1, frames=frames.flip(0))
    train(steps=1, seed=1)
    assert len(list((output / "framepainter_motion").iterdir())) == 3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(train, precision: str):
    whole, half = train(dropout=0.0)[1], train(dropout=0.0, precision=precision)[1]
    up = [n for n in whole if n.endswith("attn1.to_v.lora_up.weight")]
    a, b = (torch.cat([lora[n].flatten() for n in up]) for lora in (whole, half))
    assert torch.isfinite(b).all() and torch.cosine_similarity(a, b, 0) > 0.95


def test_files_go_round(pack, train, loaded, output, monkeypatch):
    """ComfyUI's form and the authors' form, written and read, give the same network; the host's own loader reads the first."""
    import comfy.sd
    import comfy.utils
    import folder_paths

    nodes = pack("nodes.motion_lora")
    model, lora, *_ = train()
    for form in nodes.FORMS:
        nodes.SaveMotionLora.execute(lora, "loras/motion", form, loaded.model)
    folder = output / "loras"
    files = {p.suffix: p for p in folder.iterdir()}
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors", ".pt"}))
    folder_paths.filename_list_cache.pop("loras", None)
    for path in files.values():
        again, read = nodes.LoadMotionLora.execute(loaded.model, path.name, 1.0).result
        assert set(read) == set(lora) and all(torch.equal(read[n].float(), lora[n].float()) for n in lora)
        assert set(again.patches) == set(model.patches)
    own = comfy.sd.load_lora_for_models(loaded.model, None, comfy.utils.load_torch_file(str(files[".safetensors"])), 1.0, 0)[0]
    assert set(own.patches) == set(model.patches)


def test_bad_input_is_named(pack, train, frames, loaded, output, tmp_path, monkeypatch):
    import folder_paths

    with pytest.raises(ValueError, match="'frames' has 1 frame; motion needs at least 2"):
        train(frames=frames[:1])
    with pytest.raises(ValueError, match="width is 100, not a multiple of 64; use 128"):
        train(width=100, height=64)
    with pytest.raises(ValueError, match="width is 64 and height 0"):
        train(width=64)
    with pytest.raises(ValueError, match="Train Motion LoRA: preset is 'huge'; choose one of"):
        train(preset="huge")
    nodes = pack("nodes.motion_lora")
    with pytest.raises(ValueError, match="Connect the model that the LoRA was trained on to 'model'"):
        nodes.SaveMotionLora.execute({}, "x", nodes.FORMS[1])
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save([torch.zeros(2, 2)] * 4, folder / "short.pt")
    torch.save({"a": 1}, folder / "dict.pt")
    (folder / "text.pt").write_text("<html>")
    torch.save(Opens(), folder / "code.pt")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".pt"}))
    folder_paths.filename_list_cache.pop("loras", None)
    for name, text in (("short.pt", "has 4 matrices"), ("dict.pt", "holds no flat list"), ("text.pt", "cannot be read"),
                       ("code.pt", "cannot be read")):
        with pytest.raises(ValueError, match=f"Load Motion LoRA: '{name}' {text}"):
            nodes.LoadMotionLora.execute(loaded.model, name, 1.0)
    assert not Opens.opened


class Opens:
    """Would run code when unpickled."""

    opened: list = []

    def __reduce__(self):
        return (Opens.opened.append, (1,))


@pytest.fixture
def from_file(pack, loaded, tmp_path, monkeypatch):
    """Load Motion LoRA on a file that a function has written."""
    import folder_paths

    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors", ".pt"}))
    folder_paths.filename_list_cache.pop("loras", None)

    def load(name: str, write):
        write(folder / name)
        return pack("nodes.motion_lora").LoadMotionLora.execute(loaded.model, name, 1.0).result

    return load


@pytest.fixture(scope="module")
def sound(pack, loaded):
    """A LoRA of rank 2 on every temporal layer."""
    module = pack("core.weights.motion_lora")
    shapes, out = pack("host.models.network").unet_shapes(loaded.model), {}
    for layer in module.published_order(shapes):
        outer, inner = shapes[f"{layer}.weight"]
        out |= module.named(layer, torch.full((outer, 2), 0.01), torch.full((2, inner), 0.01))
    return out


def changed(lora, part: str, value) -> dict:
    """A LoRA with another tensor, or none, at the first layer's `part`."""
    name = next(n for n in lora if n.endswith(part))
    out = {n: t for n, t in lora.items() if n != name}
    return out if value is None else {**out, name: value(lora[name])}


BAD_LORAS = {
    "no up": ("lora_up.weight", None, "has no up matrix"), "no down": ("lora_down.weight", None, "has no down matrix"),
    "rank 0": ("lora_down.weight", lambda t: t[:0], "an up matrix .* and a down matrix \\[0"),
    "disagreeing": ("lora_up.weight", lambda t: t[:, :1].contiguous(), "an up matrix .* and a down matrix"),
    "too tall": ("lora_up.weight", lambda t: torch.cat([t, t]), "an up matrix"),
    "other channels": ("lora_down.weight", lambda t: t[:, 1:].contiguous(), "was trained on another network.*takes \\d+ channels"),
    "a vector": ("lora_down.weight", lambda t: t[0].contiguous(), "was trained on another network"),
    "NaN": ("lora_up.weight", lambda t: t * float("nan"), "has values that are not finite"),
    "infinite": ("lora_down.weight", lambda t: t / 0, "has values that are not finite"),
    "NaN alpha": (".alpha", lambda t: t * float("nan"), "has values that are not finite"),
    "alphas": (".alpha", lambda t: torch.ones(3), "numbers of layer .* are of another kind"),
    "whole numbers": ("lora_up.weight", lambda t: t.to(torch.int32), "numbers of layer .* are of another kind"),
}


@pytest.mark.parametrize("name", BAD_LORAS)
def test_a_lora_that_is_none_is_refused_by_name(from_file, sound, name):
    from safetensors.torch import save_file

    part, value, message = BAD_LORAS[name]
    with pytest.raises(ValueError, match=f"^Load Motion LoRA: .*'style.safetensors'.*{message}"):
        from_file("style.safetensors", lambda path: save_file(changed(sound, part, value), str(path)))


def test_a_sound_one_is_taken_with_and_without_alphas(from_file, sound):
    from safetensors.torch import save_file

    for keep in (lambda n: True, lambda n: not n.endswith(".alpha")):
        lora = {n: t for n, t in sound.items() if keep(n)}
        model, read = from_file("style.safetensors", lambda path, lora=lora: save_file(lora, str(path)))
        assert read.keys() == lora.keys() and len(model.patches) == sum(n.endswith("up.weight") for n in sound)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
@pytest.mark.parametrize("name", ["cut", "empty", "page", "zeros", "other form"])
def test_a_broken_or_disguised_lora_is_refused_by_name(from_file, sound, ending, name):
    from safetensors.torch import save_file

    def write(path):
        if ending == ".safetensors" or name == "other form" and ending == ".pt":
            save_file(sound, str(path))
        if ending == ".pt" and name != "other form" or ending == ".safetensors" and name == "other form":
            torch.save([t for n, t in sound.items() if not n.endswith("alpha")], path)
        data = path.read_bytes()
        path.write_bytes({"cut": data[:len(data) // 2], "empty": b"", "page": b"<!DOCTYPE html><p>not found", "zeros": bytes(1000),
                          "other form": data}[name])

    refusal = f"^Load Motion LoRA: 'style{ending}' (is not usable|cannot be read as a list)"
    with pytest.raises(ValueError, match=refusal) as raised:
        from_file(f"style{ending}", write)
    assert "Traceback" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["stride 0", "rank 0", "NaN"])
def test_a_published_list_that_is_none(from_file, sound, name):
    """With stride 0 a file of some kilobytes asked for gigabytes."""
    values = [t for n, t in sound.items() if not n.endswith("alpha")]
    if name == "stride 0":
        values[0], values[1] = torch.zeros(1).expand(len(values[0]), 100_000), torch.zeros(1).expand(100_000, values[1].shape[1])
        message = "cannot be read as a list of tensors .its tensors claim"
    elif name == "rank 0":
        values[0], values[1] = values[0][:, :0], values[1][:0]
        message = "was made for another network: its matrices 0 and 1"
    else:
        values[3] = values[3] * float("nan")
        message = "has values that are not finite"
    with pytest.raises(ValueError, match=f"^Load Motion LoRA: 'style.pt' {message}"):
        from_file("style.pt", lambda path: torch.save(values, path))


# ---- nothing bad is kept ---------------------------------------------------------------------------------------------


def run_folder(output):
    (folder,) = (output / "framepainter_motion").iterdir()
    return folder


@pytest.fixture
def sick(pack, monkeypatch):
    """Make the loss NaN, as an attention kernel may; a switch that can be turned off."""
    objective, on = pack("core.training.motion_lora.objective"), {"sick": True}
    plain = objective.motion_loss
    monkeypatch.setattr(objective, "motion_loss", lambda *a: plain(*a) * (float("nan") if on["sick"] else 1.0))
    return on


def test_skipped_steps_alone_are_an_error_and_not_a_lora(train, sick, output):
    """Four steps, of which five may be skipped in a row: no LoRA of zeros, and the next sound attempt learns."""
    with pytest.raises(RuntimeError, match="Train Motion LoRA: All 4 steps were skipped.*Lower learning_rate.*States: "):
        train(steps=4)
    assert not list(run_folder(output).glob("*.safetensors")) and not list(run_folder(output).glob("state-*"))
    sick["sick"] = False
    _, lora, *_ = train(steps=4)
    assert any(bool(t.any()) for n, t in lora.items() if n.endswith("lora_up.weight"))


@pytest.mark.parametrize("spoil", [
    lambda lora: {n: t * 0 if "lora_up" in n else t for n, t in lora.items()},
    lambda lora: {n: t * float("nan") for n, t in lora.items()},
    lambda lora: None,
], ids=["zeros", "NaN", "an empty file"])
def test_a_kept_lora_that_is_spoiled_is_made_again(train, output, spoil, caplog):
    from safetensors.torch import load_file, save_file

    _, first, *_ = train()
    file = run_folder(output) / "motion_lora.safetensors"
    spoiled = spoil(load_file(str(file)))
    file.write_bytes(b"") if spoiled is None else save_file(spoiled, str(file))
    _, again, _, _, report = train()
    assert all(torch.equal(first[n], again[n]) for n in first) and "finished earlier" not in report
    assert "the result of an equal run cannot be used and is made again" in caplog.text
    assert "finished earlier" in train()[4]


def test_a_torn_log_and_preview_do_not_bar_the_next_queue(train, output):
    train(preview_every=3)
    folder = run_folder(output)
    with (folder / "stats.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    (folder / "preview-000006.png").write_bytes(b"")
    *_, curve, previews, report = train()
    assert "finished earlier" in report and curve.std() > 0.01 and previews.shape[1] == 2 * 32  # of step 3


def test_a_vae_that_overflows_is_named_and_nothing_is_kept(train, loaded, output, monkeypatch):
    encode = loaded.vae.encode
    monkeypatch.setattr(loaded.vae, "encode", lambda pixels: encode(pixels) * float("inf"))
    message = "Train Motion LoRA: the clip 'frames' cannot be used: inf or NaN in its latents.*--fp32-vae"
    with pytest.raises(ValueError, match=message):
        train()
    assert not list((output / "framepainter_motion").rglob("*.safetensors"))


def test_a_full_disk_names_node_and_state(pack, train, output, monkeypatch):
    state = pack("core.training.state")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(ValueError, match="Train Motion LoRA: '.*state-000002' could not be written: No space left.*make room"):
        train()


def test_the_users_random_numbers_do_not_move(train):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(preview_every=3)
    assert torch.equal(torch.get_rng_state(), before)


# ---- runs of earlier versions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, changes", [("motion", {}), ("motion, fp16", {"precision": "fp16"})])
def test_identities_are_those_of_version_0_1_0(train, output, kind, changes):
    """What a saved state must agree with to be continued. Digests depend on the machine's rounding, so their lengths."""
    train(**changes)
    found = identity(run_folder(output))
    assert found.pop("network")  # new: all values of all weights; what an older state does not tell is not compared
    assert found == json.loads(IDENTITIES.read_text())[kind]


@pytest.mark.parametrize("form", [0, 1])
def test_what_is_no_lora_is_not_kept(pack, loaded, output, sound, form):
    node, forms = pack("nodes.motion_lora").SaveMotionLora, pack("nodes.motion_lora").FORMS
    for lora, message in (({}, "'lora' is empty. Connect"),
                          (changed(sound, "lora_up.weight", lambda t: t * float("nan")), "not finite, in .*lora_up")):
        with pytest.raises(ValueError, match=f"^Save Motion LoRA: .*{message}"):
            node.execute(lora, "style", forms[form], loaded.model)
    assert [p for p in output.rglob("*") if p.is_file()] == []
