"""The dataset nodes: from frames to a set, through cancelling, to a contact sheet; and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH, FRAMES = 64, 80, 14


@pytest.fixture(scope="module")
def nodes(pack):
    module = pack("nodes.data")
    for node in module.NODES:  # what the host does at start
        node.GET_SCHEMA()
    return module


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    (tmp_path / "output").mkdir()
    (tmp_path / "input").mkdir()
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    return tmp_path / "output"


@pytest.fixture(scope="module")
def clip(pack):
    """(T, H, W, 3) frames of one shape over noise, and its scene."""
    data, generator = pack("core.data.procedural"), torch.Generator().manual_seed(1)
    settings = data.SceneSettings(HEIGHT, WIDTH, sprites=(1, 1), texture=5, shift=(0.5, 0.6), turn=5.0, growth=0.0)
    scenes = pack("core.data.procedural_pairs").textured(data.draw_scenes(1, FRAMES, settings, generator), generator)
    return data.render(scenes)[0].movedim(1, -1), scenes


BUILD = {"videos": "", "name": "set", "width": WIDTH, "height": HEIGHT, "min_seconds": 1.0, "max_seconds": 5.0,
         "min_motion": 0.02, "max_motion": 0.5, "static_camera": 0.7, "pairs_per_video": 2, "flow_source": "weight-free",
         "drag_points": 3, "seed": 0, "fps": 8.0}
SHAPES = {"name": "shapes", "count": 20, "width": 48, "height": 32, "seed": 0, "min_sprites": 1, "max_sprites": 2,
          "max_shift": 0.55, "turn": 26.0, "growth": 0.15, "texture": 4, "background": "smooth", "drag_points": 3}


def build(nodes, **changes):
    """As the host does: in inference mode."""
    with torch.inference_mode():
        return nodes.BuildDataset.execute(**{**BUILD, **changes}).args


def shapes(nodes, **changes):
    with torch.inference_mode():
        return nodes.ProceduralDataset.execute(**{**SHAPES, **changes}).args


def preview(nodes, **inputs):
    class Hidden:
        unique_id = None
        prompt = extra_pnginfo = None

    class Node(nodes.DatasetPreview):
        hidden = Hidden()

    return Node.execute(**{"first": 0, "count": 8, **inputs})


def test_everything_is_explained(nodes):
    for node in nodes.NODES:
        schema = node.define_schema()
        text = (ROOT / "js" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
        assert schema.description and schema.is_output_node
        for part in (*schema.inputs, *schema.outputs):
            assert part.tooltip, part
        for widget in schema.inputs:
            assert f"`{widget.id}`" in text, f"{schema.node_id} does not explain {widget.id}"


def test_from_images_to_a_sheet(pack, nodes, output, clip):
    folder, report = build(nodes, images=clip[0])
    assert Path(folder) == output / "framepainter_datasets" / "set" and "2 pairs in 1 shards" in report
    index = pack("core.data.shards").ShardIndex(folder)
    assert len(index) == 2 and index[0].source.shape == (3, HEIGHT, WIDTH)
    first, last = index[0].info["frames"]
    assert (index[0].target.movedim(0, -1) - clip[0][last]).abs().max() <= 0.5 / 255 + 1e-6
    result = preview(nodes, dataset=folder)
    sheet, counts = result.args
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and 0 <= sheet.min() and sheet.max() <= 1
    assert counts.startswith("2 pairs; shown 0 to 1; damaged and skipped: 0")
    assert result.ui
    assert preview(nodes, dataset="set").args[1] == preview(nodes, dataset="framepainter_datasets/set").args[1] == counts


def test_every_column_shows_something(pack, nodes, output):
    """Cells of the sheet are the pictures themselves: none blank, none like its neighbour."""
    folder, _ = shapes(nodes, count=2, width=256, height=192)
    sheet = preview(nodes, dataset=folder, count=1).args[0][0]
    sample = pack("core.data.shards").ShardIndex(folder)[0]
    gap, line = 6, 20
    cells = [sheet[2 * line:2 * line + 192, gap + i * (256 + gap):gap + i * (256 + gap) + 256] for i in range(7)]
    for cell, picture in ((cells[0], sample.source), (cells[1], sample.target), (cells[4], sample.sketch),
                          (cells[6], sample.coarse)):
        assert (cell - picture.movedim(0, -1)).abs().max() < 0.005
    assert (cells[2][~(sample.flow.norm(dim=0) > 0.5)] > 0.99).all()  # rest is white, motion is not
    assert (cells[2][sample.flow.norm(dim=0) > 5].amin(-1) < 0.9).all()
    assert torch.equal(cells[3][..., 0] > 0.5, sample.visible)
    for x, y in sample.drag_target.long().tolist():
        assert cells[5][y, x].tolist() == pytest.approx([0, 1, 0], abs=0.01)


def test_colour_wheel(pack):
    """Opposite directions have opposite hues; depth grows with length and stops at the longest."""
    wheel = pack("core.data.contact_sheet").colour_wheel
    flow = torch.tensor([[4.0, 0], [-4, 0], [0, 4], [2, 0], [9, 0], [0, 0]]).T[:, None]
    right, left, down, half, far, rest = wheel(flow, 4.0)[:, 0].T
    assert right.tolist() == far.tolist() == [1, 0, 0] and left.tolist() == [0, 1, 1]
    assert half.tolist() == [1, 0.5, 0.5] and rest.tolist() == [1, 1, 1]
    assert down.tolist() == pytest.approx([0.5, 1, 0], abs=1e-5)


def test_folder_of_videos_and_report(nodes, output, clip):
    from PIL import Image

    place = output.parent / "input" / "clips" / "shot"
    place.mkdir(parents=True)
    for n, frame in enumerate(clip[0]):
        Image.fromarray((frame * 255).round().byte().numpy()).save(place / f"{n}.png")
    (place.parent / "broken.mp4").write_bytes(b"broken" * 99)
    before = nodes.BuildDataset.fingerprint_inputs(videos="clips")
    folder, report = build(nodes, videos="clips")
    assert "2 pairs in 1 shards" in report and "videos skipped: 1" in report and "broken.mp4 cannot be opened" in report
    assert build(nodes, videos=str(place.parent))[1].startswith("2 pairs in 1 shards, 0 of them new")
    (place / "20.png").write_bytes((place / "0.png").read_bytes())
    assert nodes.BuildDataset.fingerprint_inputs(videos="clips") != before


def test_cancel_and_go_on(nodes, output, monkeypatch):
    """The host's cancel button, then the same again: the bytes of an uninterrupted run, and the rest is not made twice."""
    import comfy.model_management as mm

    whole, _ = shapes(nodes, count=40)
    calls = 0

    def check():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise mm.InterruptProcessingException()

    with monkeypatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", check)
        with pytest.raises(mm.InterruptProcessingException):
            shapes(nodes, count=40, name="again")
    place = output / "framepainter_datasets" / "again"
    assert not (place / "dataset.json").exists()
    with pytest.raises(ValueError, match="Dataset Preview: dataset is 'again', which is no finished dataset"):
        preview(nodes, dataset="again")
    _, report = shapes(nodes, count=40, name="again")
    assert "40 pairs in 2 shards, 16 of them new" not in report and "24 of them new" in report
    assert {p.name: p.read_bytes() for p in place.iterdir()} == {p.name: p.read_bytes() for p in Path(whole).iterdir()}


def test_progress(nodes, output, monkeypatch):
    import comfy.utils

    seen = []
    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", lambda _, *values: seen.append(values[:2]))
    shapes(nodes, count=40)
    assert seen == [(0, 40), (16, 40), (32, 40), (40, 40)]


def test_flow_from_another_node(pack, nodes, output, clip):
    """The true motion from frame to frame, given as FLOW: pairs come out with the true motion over many frames."""
    data, (frames, scenes) = pack("core.data.procedural"), clip
    fields = torch.cat([data.correspondence(scenes, n + 1, n).flow for n in range(FRAMES - 1)]).movedim(1, -1)
    folder, _ = build(nodes, images=frames, flow=fields)
    for sample in pack("core.data.shards").ShardIndex(folder):
        first, last = sample.info["frames"]
        truth = data.correspondence(scenes, first, last)
        core = torch.nn.functional.max_pool2d((truth.owner == 0).float()[:, None], 9, 1, 4)[0, 0] == 0
        error = (sample.flow - truth.flow[0]).norm(dim=0)[core & truth.visible[0]]
        assert sample.info["flow_source"] == "given flow" and error.mean() < 0.5
    with pytest.raises(ValueError, match="Build Dataset: flow has 13 fields for 12 frames"):
        build(nodes, name="short", images=frames[:12], flow=fields)


def test_tracks_from_another_node(pack, nodes, output, clip):
    """Two points as CoTracker nodes put them out: motion around them and nowhere else."""
    frames = clip[0]
    tracks = [json.dumps([{"x": 20 + n, "y": 30} for n in range(FRAMES)]),
              json.dumps([{"x": 60, "y": 12 + 2 * n} for n in range(FRAMES)])]
    folder, _ = build(nodes, images=frames, tracks=tracks, flow_source="automatic")
    sample = pack("core.data.shards").ShardIndex(folder)[0]
    first, last = sample.info["frames"]
    gap = last - first
    assert sample.flow[:, 30, 20 + last].tolist() == [-gap, 0] and sample.flow[:, 12 + 2 * last, 60].tolist() == [0, -2 * gap]
    assert 0.001 < sample.visible.float().mean() < 0.05
    assert {tuple(d) for d in (sample.drag_source - sample.drag_target).tolist()} <= {(-gap, 0), (0, -2 * gap)}
    both = {"track_path": torch.zeros(5, 2, 2), "track_visibility": torch.ones(5, 2)}
    with pytest.raises(ValueError, match="Build Dataset: tracks have 5 frames, images 14"):
        build(nodes, name="short", images=frames, tracks=both)


def test_raft_from_the_models_folder(pack, nodes, output, clip, monkeypatch, tmp_path):
    """A file appears in the list; automatic takes it; what is no RAFT is refused by name."""
    import folder_paths
    from torchvision.models import optical_flow

    folders, endings = folder_paths.folder_names_and_paths["optical_flow"]
    assert any(Path(f).name == "optical_flow" for f in folders) and {".pth", ".safetensors"} <= set(endings)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "optical_flow", ([str(tmp_path)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    flows = pack("host.data.flow")
    assert flows.estimator("automatic").name == "weight-free"
    torch.manual_seed(0)
    torch.save(optical_flow.raft_small(weights=None).state_dict(), tmp_path / "raft_small.pth")
    torch.save({"x": torch.zeros(2)}, tmp_path / "other.pth")
    folder_paths.filename_list_cache.clear()
    assert flows.choices() == ["automatic", "weight-free", "raft_small.pth", "other.pth"]
    source = flows.estimator("automatic")
    assert source.name == "RAFT raft_small.pth"
    frames = clip[0][:2].movedim(-1, 1)
    with torch.inference_mode():
        motion = source(frames[1:], frames[:1], (1, 0))
    assert motion.flow.shape == (1, 2, HEIGHT, WIDTH) and motion.flow.isfinite().all()
    with pytest.raises(ValueError, match="Build Dataset: 'other.pth' is not one of torchvision's RAFT"):
        build(nodes, images=clip[0], flow_source="other.pth")
    with pytest.raises(ValueError, match="flow_source is 'gone.pth'; choose one of automatic"):
        build(nodes, images=clip[0], flow_source="gone.pth")


@pytest.mark.parametrize("name", ["", "..", "../out", "a/b", "/abs", "a..b", "name.", "x" * 81, "a\nb", "C:\\x"])
def test_names_that_could_leave_the_folder(nodes, output, name):
    for run in (shapes, lambda n, name: build(n, name=name, images=torch.zeros(9, 16, 16, 3))):
        with pytest.raises(ValueError, match="name is '"):
            run(nodes, name=name)
    with pytest.raises(ValueError, match="Dataset Preview: dataset is"):
        preview(nodes, dataset=name)
    assert not list(output.rglob("*.tar")) and not list(output.parent.glob("*.tar"))


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="no links")
def test_a_link_that_leads_out(nodes, output, tmp_path):
    (output / "framepainter_datasets").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (output / "framepainter_datasets" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(ValueError, match="leads out of the output folder"):
        shapes(nodes, name="linked")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("changes, message", [
    ({}, "nothing to take pairs from"), ({"videos": "none"}, "videos is 'none', and there is no folder"),
    ({"videos": "."}, "holds no videos"), ({"images": True, "fps": 0.0}, "fps is 0"),
    ({"images": True, "max_seconds": 1.0}, "Raise max_seconds"), ({"images": True, "holes": "grey"}, "holes is 'grey'"),
    ({"flow": torch.zeros(1, 8, 8, 2)}, "images is not"), ({"images": True, "flow": 3, "tracks": "[]"}, "both flow and tracks"),
    ({"images": True, "videos": ".", "tracks": "[]"}, "belong to images"),
    ({"images": True, "tracks": "nonsense"}, "tracks cannot be read")])
def test_wrong_inputs_are_named(nodes, output, clip, changes, message):
    with pytest.raises(ValueError, match=f"^Build Dataset: .*{message}"):
        build(nodes, **{**changes, **({"images": clip[0]} if "images" in changes else {})})
    assert not list(output.rglob("*.tar*"))


def test_other_settings_and_numbers(nodes, output):
    shapes(nodes)
    with pytest.raises(ValueError, match="Procedural Dataset: .*other settings .seed was 0, now it is 1"):
        shapes(nodes, seed=1)
    with pytest.raises(ValueError, match="min_sprites is 3, more than max_sprites, 2"):
        shapes(nodes, min_sprites=3)
    with pytest.raises(ValueError, match="first is 20, the dataset has 20 pairs"):
        preview(nodes, dataset="shapes", first=20)
    assert preview(nodes, dataset="shapes", first=18).args[1].startswith("20 pairs; shown 18 to 19")


def test_a_set_without_pairs(nodes, output):
    """Nothing moves: no error, the report says why; the preview says that there is nothing."""
    folder, report = build(nodes, images=torch.rand(1, 32, 32, 3).expand(12, -1, -1, -1))
    assert "0 pairs" in report and "too little motion" in report
    with pytest.raises(ValueError, match="Dataset Preview: .*holds no usable sample"):
        preview(nodes, dataset=folder)


def test_damaged_pairs_are_told(nodes, output, caplog):
    folder, _ = shapes(nodes)
    shard = next(Path(folder).glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[3000:3100] = bytes(100)
    shard.write_bytes(data)
    _, counts = preview(nodes, dataset=folder, count=3).args
    assert "damaged and skipped: 1" in counts and "scene_000000" in counts
    assert "Dataset Preview: 1 damaged pairs are skipped" in caplog.text
