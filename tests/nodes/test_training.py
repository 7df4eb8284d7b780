"""The training node: runs, cancels, goes on, refuses; the models that came in stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from framepainter_tests import tiny
from framepainter_tests.runs import IDENTITIES, identity


@pytest.fixture(scope="module")
def loaded(pack, tool, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", pack, tool)
    with torch.inference_mode():
        return pack("host.weights.loading").load(path, None, None, torch.float32)


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def dataset(pack, output, monkeypatch) -> str:
    """Five exact pairs of 32 x 48 pixels that stand for a folder."""
    folder = output / "framepainter_datasets" / "pairs"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text('{"format": 1}')
    index = tiny.samples(pack, 5, 32, 48)
    monkeypatch.setattr(pack("host.training.framepainter"), "open_dataset", lambda _: index)
    return "framepainter_datasets/pairs"


DEFAULTS = {"preset": "small network", "what_trains": "everything", "signal": "sketch", "steps": 4, "batch": 1,
            "learning_rate": 1e-3, "matching_loss": "as the preset", "matching_weight": -1.0, "ema": -1.0, "accumulate": 0,
            "precision": "as the preset", "checkpointing": "as the preset", "save_every": 250, "preview_every": 0, "seed": 0}


def train(pack, loaded, dataset, run_name="run", **changes):
    """Execute the node as the host does: in inference mode."""
    node = pack("nodes.training").TrainFramePainter
    framepainter = changes.pop("framepainter", loaded.weights)
    with torch.inference_mode():
        return node.execute(model=loaded.model, clip_vision=loaded.clip_vision, vae=loaded.vae, dataset=dataset,
                            run_name=run_name, framepainter=framepainter, **{**DEFAULTS, **changes}).args


def weights(model, parts) -> dict[str, torch.Tensor]:
    states = {"unet": model.model.diffusion_model, "matching": parts.matching.model, "encoder": parts.encoder.model}
    with torch.inference_mode():
        return {f"{part}.{n}": t.clone() for part, m in states.items() for n, t in m.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def log(output: Path, name: str) -> list[dict]:
    lines = (output / "framepainter_training" / name / "stats.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_a_run_gives_models_and_pictures(pack, loaded, dataset, output):
    before = weights(loaded.model, loaded.weights)
    model, parts, curve, previews, report = train(pack, loaded, dataset, preview_every=2)
    after = weights(model, parts)
    assert equal(before, weights(loaded.model, loaded.weights))  # what came in is as it was
    assert not equal(after, before) and after.keys() == before.keys()
    assert curve.shape == (1, 360, 640, 3) and 0 < float(curve.std())
    assert previews.shape == (1, 64, 4 * 48, 3) and float(previews[0, :, :48].std()) > 0.01
    assert "step 4 of 4" in report and "estimated, not measured" in report and "5 pairs" in report
    folder = output / "framepainter_training" / "run"
    assert [p.name for p in sorted(folder.glob("preview-*"))] == ["preview-000002.png", "preview-000004.png"]
    assert [e["step"] for e in log(output, "run")] == [1, 2, 3, 4]


def test_previews_and_seeds(pack, loaded, dataset, output):
    """Previews take no part in the training; the seed does."""
    one = weights(*train(pack, loaded, dataset, "one", steps=2)[:2])
    assert equal(one, weights(*train(pack, loaded, dataset, "two", steps=2, preview_every=1)[:2]))
    assert not equal(one, weights(*train(pack, loaded, dataset, "three", steps=2, seed=1)[:2]))


def test_cancelled_and_queued_again_is_uninterrupted(pack, loaded, dataset, output, monkeypatch):
    """The host's cancel ends a run between two steps; the state is saved, and the next queue ends at the same bits."""
    import comfy.model_management as mm

    whole = weights(*train(pack, loaded, dataset, "whole", accumulate=2)[:2])
    plain, stop = mm.throw_exception_if_processing_interrupted, {"in": 0}

    def cancel():
        stop["in"] -= 1
        if stop["in"] == 0:
            mm.interrupt_current_processing()
        plain()

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancel)
    for asked, reached in ((3, 1), (4, 3)):  # asked once for the cache, which is there, then before every step
        stop["in"] = asked
        with pytest.raises(mm.InterruptProcessingException):
            train(pack, loaded, dataset, "parts", accumulate=2)
        assert log(output, "parts")[-1]["step"] == reached
        assert (output / "framepainter_training" / "parts" / f"state-{reached:06d}").is_dir()
    stop["in"] = 0
    assert equal(weights(*train(pack, loaded, dataset, "parts", accumulate=2)[:2]), whole)
    assert log(output, "parts") == log(output, "whole")


def test_cancelled_while_preparing(pack, loaded, dataset, output, monkeypatch):
    import comfy.model_management as mm

    def cancel():
        raise mm.InterruptProcessingException

    monkeypatch.setattr(mm, "throw_exception_if_processing_interrupted", cancel)
    with pytest.raises(mm.InterruptProcessingException):
        train(pack, loaded, dataset)
    assert not list(output.rglob("*.partial")) and not (output / "framepainter_training" / "run" / "stats.jsonl").exists()


def test_a_finished_run_can_be_lengthened(pack, loaded, dataset, output):
    whole = weights(*train(pack, loaded, dataset, "whole", steps=3)[:2])
    short = train(pack, loaded, dataset, "longer", steps=2)
    assert equal(weights(*short[:2]), weights(*train(pack, loaded, dataset, "longer", steps=2)[:2]))
    assert equal(weights(*train(pack, loaded, dataset, "longer", steps=3)[:2]), whole)


def test_the_cache_is_made_once(pack, loaded, dataset, output, monkeypatch):
    train(pack, loaded, dataset, "one", steps=1)
    monkeypatch.setattr(loaded.vae, "encode", None)
    train(pack, loaded, dataset, "two", steps=1, signal="mixed")  # the cache serves every signal


@pytest.mark.parametrize("what", ["matching and encoder", "matching, encoder and LoRA"])
def test_frozen_parts_come_out_as_they_went_in(pack, loaded, dataset, output, what):
    before = weights(loaded.model, loaded.weights)
    after = weights(*train(pack, loaded, dataset, what_trains=what, steps=2, signal="mixed")[:2])
    changed = {n for n, t in before.items() if not torch.equal(t, after[n])}
    inside = {n for n in changed if n.startswith("unet.")}
    assert any(n.startswith("matching.") for n in changed) and any(n.startswith("encoder.") for n in changed)
    if what.endswith("LoRA"):
        assert inside and all(".attn1.to_" in n or ".attn2.to_" in n for n in inside)
    else:
        assert not inside


def test_drags_leave_the_control_encoder(pack, loaded, dataset, output):
    before = weights(loaded.model, loaded.weights)
    after = weights(*train(pack, loaded, dataset, signal="drag", steps=2, preview_every=2)[:2])
    changed = {n.split(".")[0] for n, t in before.items() if not torch.equal(t, after[n])}
    assert changed == {"unet", "matching"}


def test_from_a_plain_model(pack, loaded, dataset, output):
    model, parts, *_ = train(pack, loaded, dataset, framepainter=None, steps=1, semantics="paper", matching_loss="off")
    assert parts.encoder.model.widths.out == 32
    patch, = (p for p in model.model_options["transformer_options"]["patches"]["attn1_output_patch"])
    assert patch.targets_only


def test_the_result_samples(pack, loaded, dataset, output):
    """MODEL and FRAMEPAINTER go through the ordinary nodes and the host's sampler."""
    from framepainter_tests.networks import Edit, sample

    model, parts, *_ = train(pack, loaded, dataset, steps=1)
    with torch.inference_mode():
        made = pack("host.conditioning").edit_conditioning(loaded.clip_vision, loaded.vae, torch.rand(1, 32, 48, 3), 32, 48, 6,
                                                           128, 0.02, 0)
        model = pack("host.signals.control").apply_control(model, parts.encoder, torch.ones(1, 32, 48, 3), 0.8, 0, 1, "release")
    assert torch.isfinite(sample(model, Edit(None, made.positive, made.negative, made.latent["samples"]))).all()


def test_not_a_number_keeps_the_last_good_state(pack, loaded, dataset, output, monkeypatch):
    objective, loop = pack("core.training.framepainter.objective"), pack("core.training.loop")
    plain, calls = objective.losses, {"n": 0}

    def turns_bad(*args):
        calls["n"] += 1
        out = dict(plain(*args))
        return {**out, "loss": out["loss"] * float("nan")} if calls["n"] == 3 else out

    monkeypatch.setattr(objective, "losses", turns_bad)
    with pytest.raises(loop.NonFinite, match="FramePainter Train: At step 3 loss is nan.*Lower learning_rate.*States: "):
        train(pack, loaded, dataset)
    assert (output / "framepainter_training" / "run" / "state-000002").is_dir()
    train(pack, loaded, dataset)  # and goes on from there


def test_progress_shows_the_curve(pack, loaded, dataset, output, monkeypatch):
    import comfy.utils

    told = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **kw: told.append(args))
    train(pack, loaded, dataset, steps=2)
    seen = [t[:2] for t in told]  # newer hosts leave out what follows too soon
    assert seen[0] == (1, 5) and seen[-1] == (2, 2) and (5, 5) in seen
    assert seen == sorted(seen, key=lambda t: (-t[1], t[0]))
    kind, picture, size = told[-1][2]
    assert kind == "JPEG" and picture.size == (640, 360) and size == 512


@pytest.mark.parametrize("changes, message", [
    ({"dataset": "nowhere"}, "FramePainter Train: dataset is 'nowhere'.*Connect the dataset output"),
    ({"dataset": "../.."}, "dataset is '../..', which is no finished dataset under the output folder"),
    ({"dataset": ""}, "dataset is ''"),
    ({"run_name": "../run"}, "run_name is '../run'; use up to 80 letters"),
    ({"run_name": "a/b"}, "run_name is 'a/b'"),
    ({"run_name": ""}, "run_name is ''"),
    ({"precision": "fp16"}, "precision is 'fp16'; choose one of"),
    ({"preset": "8 GB"}, "preset is '8 GB'; choose one of paper, 24 GB"),
])
def test_bad_inputs_are_named(pack, loaded, dataset, output, changes, message):
    with pytest.raises(ValueError, match=message):
        train(pack, loaded, **{"dataset": dataset, **changes})


def test_other_settings_need_another_name(pack, loaded, dataset, output):
    train(pack, loaded, dataset, steps=1)
    with pytest.raises(ValueError, match="FramePainter Train: .*made with signal = sketch, now it is coarse.*another folder"):
        train(pack, loaded, dataset, steps=2, signal="coarse")
    with pytest.raises(ValueError, match="made with start = "):
        train(pack, loaded, dataset, steps=2, framepainter=None)


def test_sizes_that_do_not_fit(pack, loaded, dataset, output, monkeypatch):
    index = tiny.samples(pack, 1, 40, 48)
    monkeypatch.setattr(pack("host.training.framepainter"), "open_dataset", lambda _: index)
    with pytest.raises(ValueError, match="pictures are 48 x 40; this network needs sides that are multiples of 16"):
        train(pack, loaded, dataset)


def test_the_users_random_numbers_do_not_move(pack, loaded, dataset, output):
    """New encoder and LoRA, the cache, steps and previews."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(pack, loaded, dataset, steps=2, preview_every=1, framepainter=None, what_trains="matching, encoder and LoRA")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind, changes", [
    ("everything", {}),
    ("LoRA", {"what_trains": "matching, encoder and LoRA", "signal": "mixed", "ema": 0.9, "precision": "bf16"})])
def test_identities_are_those_of_version_0_1_0(pack, loaded, dataset, output, kind, changes):
    """What a saved state must agree with to be continued. Digests depend on the machine's rounding, so their lengths."""
    train(pack, loaded, dataset, steps=1, accumulate=2, checkpointing="on", **changes)
    assert identity(output / "framepainter_training" / "run") == json.loads(IDENTITIES.read_text())[kind]


def test_a_vae_that_overflows_is_named_and_nothing_is_kept(pack, loaded, dataset, output, monkeypatch):
    encode = loaded.vae.encode
    with monkeypatch.context() as patched, pytest.raises(
            ValueError, match="FramePainter Train: the pair 'clip_0' cannot be used: inf or NaN in its latents.*--fp32-vae"):
        patched.setattr(loaded.vae, "encode", lambda pixels: encode(pixels) * float("nan"))
        train(pack, loaded, dataset)
    assert not list(output.rglob("*.safetensors"))
    assert "step 1 of 1" in train(pack, loaded, dataset, steps=1)[4]


def test_a_torn_log_does_not_bar_the_next_queue(pack, loaded, dataset, output):
    whole = weights(*train(pack, loaded, dataset, steps=2)[:2])
    with (output / "framepainter_training" / "run" / "stats.jsonl").open("ab") as torn:
        torn.write(b'{"step": 3, "losses": {"lo\xff')
    assert equal(weights(*train(pack, loaded, dataset, steps=2)[:2]), whole)
    assert [e["step"] for e in log(output, "run")] == [1, 2]


def test_everything_is_explained(pack):
    schema = pack("nodes.training").TrainFramePainter.define_schema()
    page = (Path(__file__).parents[2] / "js" / "docs" / "FramePainterTrain.md").read_text(encoding="utf-8")
    assert all(o.tooltip for o in schema.outputs)
    for widget in schema.inputs:
        assert widget.tooltip and f"`{widget.id}`" in page, widget.id


@pytest.mark.parametrize("where", ["state", "log", "cache"])
def test_a_full_disk_is_named_with_node_and_path(pack, loaded, dataset, output, monkeypatch, where):
    """And what was there before it stays: the run goes on when there is room."""
    def full(tensors, name, *_, **__):
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    whole = weights(*train(pack, loaded, dataset, "whole", steps=3)[:2])
    module = pack({"state": "core.training.state", "cache": "core.training.framepainter.cache"}.get(where, "core.training.state"))
    name = {"state": "state-000003", "cache": r"cache-\w+/000000.safetensors", "log": "stats.jsonl"}[where]
    if where != "cache":
        train(pack, loaded, dataset, steps=2)
    else:
        for path in output.rglob("cache-*/*"):
            path.unlink()
    with monkeypatch.context() as patched:
        if where == "log":
            patched.setattr(pack("core.atomic").os, "replace", lambda *_: full(None, output / "half"))
        else:
            patched.setattr(module, "save_file", full)
        with pytest.raises(ValueError, match=f"^FramePainter Train: '.*{name}' could not be written: No space left on device. "
                                             ".*(make|Make) room"):
            train(pack, loaded, dataset, steps=3)
    assert not list(output.rglob("*.partial"))
    assert equal(weights(*train(pack, loaded, dataset, steps=3)[:2]), whole)
