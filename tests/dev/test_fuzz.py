"""`dev.py fuzz`: a part of it with a fixed seed; what it finds, it finds; and the faults that it has found."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
COUNT = 60


@pytest.fixture(scope="module")
def attack():
    """Modules of tools/attack by name."""
    place = str(ROOT / "tools" / "attack")
    sys.path.append(place)
    try:
        import damage
        import fuzz
        import judge

        yield {"damage": damage, "fuzz": fuzz, "judge": judge}
    finally:
        sys.path.remove(place)


def test_sixty_inputs_without_a_finding(attack, tmp_path, capsys):
    arguments = ["--host", os.environ["FRAMEPAINTER_HOST"], "--count", str(COUNT), "--seed", "suite", "--out", str(tmp_path)]
    assert attack["fuzz"].main(arguments) == 0, capsys.readouterr().out
    inputs = [json.loads(line) for line in (tmp_path / "inputs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["end"] for entry in inputs] == list(range(COUNT))
    outcomes = {entry["outcome"] for entry in inputs}
    assert outcomes >= {"result", "refused"} and len({entry["target"] for entry in inputs}) > 20


FAULTY = """
import json, os, sys, time
first, count, step = map(int, sys.argv[4:7])
for number in range(first, count, step):
    print(json.dumps({"start": number}), flush=True)
    print(json.dumps({"target": f"Node {number}"}), flush=True)
    if number == 1:
        os.abort()
    if number == 2:
        time.sleep(600)
    print(json.dumps({"end": number, "target": "Node", "outcome": "result"}), flush=True)
"""


def test_what_crashes_or_hangs_is_found_and_the_rest_runs(attack, tmp_path):
    child = tmp_path / "child.py"
    child.write_text(FAULTY)
    found = attack["fuzz"].Fuzz(ROOT, "s", tmp_path / "out", child, hang_s=3.0)
    found.share(0, 4, 1, float("inf"))
    faults = [(f["end"], f["target"], f["fault"].split(":")[0]) for f in found.findings]
    assert faults == [(1, "Node 1", "crashes the process (exit code -6)"), (2, "Node 2", "hangs")]
    assert found.counts["Node", "result"] == 2
    case = json.loads(next((tmp_path / "out").glob("s-2-*/case.json")).read_text())
    assert case["again"] == "python dev.py fuzz --seed s --only 2"


def test_an_error_of_a_library_is_no_sentence_for_a_user(attack, pack):
    judge = attack["judge"]

    def fault(do) -> str | None:
        with pytest.raises(Exception) as raised, pack("host.report").named("Node"):
            do()
        return judge.error_fault(raised.value, "Node")

    assert fault(lambda: pack("core.images").as_pictures(torch.zeros(5), "picture")) is None  # ours, and under the node's name
    assert fault(lambda: pack("nodes.schema").check_choice("form", "\ud800", ["a"])) is None
    assert "raw error" in fault(lambda: pack("core.images").one_of(torch.zeros(2, 3), 0) @ torch.zeros(4, 4))
    assert "raw error" in fault(lambda: pack("core.training.state").states(None))
    assert "too much memory" in fault(lambda: torch.zeros(1 << 50))


def test_results_that_are_none(attack):
    fault = attack["judge"].result_fault
    picture = torch.rand(1, 4, 4, 3)
    assert fault([("a", "IMAGE")], (picture,), True) is None
    for bad in (picture * float("nan"), picture[0], picture.half(), picture[:0], picture + 1, picture[..., :1]):
        assert fault([("a", "IMAGE")], ([picture, bad],), True), bad.shape
    assert fault([("a", "STRING")], ("\ud800",), True) and fault([("a", "MASK")], (), True)


def test_damage_follows_from_the_seed_and_damages(attack, tmp_path, monkeypatch):
    from safetensors.torch import save

    monkeypatch.chdir(tmp_path)
    damaged, sound = attack["damage"].damaged, save({"a": torch.zeros(20)})
    made = [damaged(sound, random.Random(i)) for i in range(200)]
    assert made == [damaged(sound, random.Random(i)) for i in range(200)]
    assert sum(m != sound for m in made) > 190 and len(set(made)) > 150 and not list(tmp_path.iterdir())
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(500))
    torn = packed.getvalue().replace(b"\x63\x60", b"\xff\xff")  # a stream that zlib refuses with an error of its own
    assert all(damaged(torn, random.Random(i)) is not None for i in range(40))


# ---- found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_number_out_of_bounds_is_refused_by_every_node(pack, value):
    """NaN passes the host's comparison with the bounds, and what another node gives is compared with nothing."""
    node = next(n for n in pack("nodes").NODES if n.__name__ == "EditMask")
    mask = torch.zeros(1, 8, 8)
    with pytest.raises(ValueError, match=r"Edit Mask: threshold is .*; give a number from 0.0 to 1.0"):
        node.execute(torch.rand(1, 8, 8, 3), value, 0.1, 0, 0, mask=mask)
    with pytest.raises(ValueError, match=r"Edit Mask: feather is -1; give a number from 0 to 1024"):
        node.execute(torch.rand(1, 8, 8, 3), 0.1, 0.1, 0, -1, mask=mask)


def test_frames_of_a_video_that_nodes_made_are_pictures_like_others(pack, caplog):
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    node = next(n for n in pack("nodes").NODES if n.__name__ == "ReadVideo")
    frames = torch.rand(3, 1, 9, 3)
    frames[1, 0, 0, 0] = float("nan")
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, audio=None, frame_rate=Fraction(8)))
    found = node.execute(video, -1.0, 0.0, -1.0, True).args[0]
    assert found.shape == (3, 1, 8, 3) and found.isfinite().all()
    assert "Read Video: 'video' has 1 values that are not finite" in caplog.text


@pytest.mark.parametrize("name", ["x\0y", "a" * 300, "x\0.png [example]"])
def test_a_picture_s_name_that_no_file_can_have(pack, name):
    with pytest.raises(FileNotFoundError, match="is neither in the input folder nor one of the examples"):
        pack("host.inputs.files").find(name)


def test_an_empty_mask_is_refused_by_evaluation(pack):
    node = next(n for n in pack("nodes").NODES if n.__name__ == "EvaluateEdits")
    picture = torch.rand(1, 8, 8, 3)
    with pytest.raises(ValueError, match="Evaluate Edits: mask 0 of 'moved' is empty .8 x 0 pixels"):
        node.execute(edited=[picture], truth=[picture], moved=[torch.zeros(1, 0, 8)])


@pytest.mark.parametrize("part, value", [("alpha", torch.zeros(3)), ("lora_down.weight", torch.zeros(0, 4)),
                                         ("lora_up.weight", torch.zeros(4))])
def test_a_lora_of_other_sizes_is_not_published(pack, monkeypatch, part, value):
    module = pack("core.weights.motion_lora")
    monkeypatch.setattr(module, "published_order", lambda names: ["layer"])
    lora = module.named("layer", torch.ones(4, 2), torch.ones(2, 4))
    assert len(module.to_published(lora, [])) == 2
    with pytest.raises(module.LoraFileError, match="'lora' is no motion LoRA: the matrices or the alpha of layer layer"):
        module.to_published({**lora, f"{module.PREFIX}layer.{part}": value}, [])


def test_half_a_character_in_a_prompt_is_named(pack):
    error = pack("core.attention.align").WordError
    with pytest.raises(error, match=r"'edited_text' has half of a character in it: a \\ud800"):
        pack("host.attention.prompt_text").read_prompt(None, "a \ud800", "edited_text")


@pytest.mark.parametrize("shape", [(1, 77, 8), (1, 0, 16), (77, 16)])
def test_another_encoders_conditioning_is_refused(pack, shape):
    """It ended within the network, whose matrices did not fit."""
    from types import SimpleNamespace

    network = pack("host.models.network")
    model = SimpleNamespace(model=SimpleNamespace(model_config=SimpleNamespace(unet_config={"context_dim": 16})))
    network.check_embedding(model, [[torch.zeros(1, 3, 16), {}]], "positive")
    with pytest.raises(network.WrongModel, match=r"'positive' holds an embedding of shape .*takes \[1, tokens, 16\]"):
        network.check_embedding(model, [[torch.zeros(shape), {}]], "positive")


def test_loading_a_model_leaves_torchs_generator(pack):
    node = next(n for n in pack("nodes").NODES if n.__name__ == "LoadSmallTextToImage")
    before = torch.get_rng_state()
    node.execute("small_text_to_image.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
