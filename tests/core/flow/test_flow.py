"""Flow: the weight-free estimator against known motion, RAFT's loading, and what other nodes give."""

from __future__ import annotations

import json
import math

import pytest
import torch


@pytest.fixture(scope="module")
def raft(pack):
    return pack("core.flow.raft")


@pytest.fixture(scope="module")
def weight_free(pack):
    return pack("core.flow.weight_free")


@pytest.fixture(scope="module")
def given(pack):
    return pack("core.flow.given")


@pytest.fixture(scope="module")
def flow(pack):
    return pack("core.flow.consistency")


@pytest.fixture(scope="module")
def data(pack):
    return pack("core.data.procedural")


@pytest.fixture(scope="module")
def scenes(pack, data):
    """Pairs of 96 x 128 pixels over noise, and their truth both ways."""
    generator = torch.Generator().manual_seed(2)
    made = data.draw_scenes(5, 2, data.SceneSettings(96, 128, texture=6), generator)
    made = pack("core.data.procedural_pairs").textured(made, generator)
    frames = data.render(made)
    return frames, data.correspondence(made, 0, 1), data.correspondence(made, 1, 0)


@pytest.fixture(scope="module")
def estimated(weight_free, flow, scenes):
    frames, _, _ = scenes
    return weight_free.weight_free_flow(frames[:, 1], frames[:, 0]), weight_free.weight_free_flow(frames[:, 0], frames[:, 1])


def test_estimator_on_known_motion(scenes, estimated):
    """Rotation, growth and shifts of a sixth of the picture: within a pixel on the most of what moves."""
    _, truth, _ = scenes
    error = (estimated[0] - truth.flow).norm(dim=1)
    moving, still = truth.visible & (truth.owner > 0), truth.visible & (truth.owner == 0)
    assert truth.flow.norm(dim=1)[moving].mean() > 12
    assert (error[moving] < 1).float().mean() > 0.85
    assert error[moving].mean() < 1.5
    assert (error[still] < 1).float().mean() > 0.97


def test_consistency_finds_what_is_hidden(flow, scenes, estimated):
    _, truth, _ = scenes
    visible = flow.consistent(*estimated)
    assert (visible == truth.visible).float().mean() > 0.93
    assert (~visible)[~truth.visible].float().mean() > 0.85


def test_estimator_on_whole_shifts(weight_free, flow):
    """Noise moved by whole pixels: exact where it is not at the border."""
    noise = torch.rand(1, 3, 56, 80, generator=torch.Generator().manual_seed(0))
    for dx, dy in ((5, -3), (-11, 8)):
        found = weight_free.weight_free_flow(noise.roll((-dy, -dx), (2, 3)), noise)
        inner = found[..., 12:-12, 12:-12]
        assert (inner - torch.tensor([dx, dy])[:, None, None]).abs().max() < 0.2


def test_nothing_moves(weight_free, flow):
    """No motion, with and without texture, gives none at all."""
    for picture in (torch.rand(1, 3, 40, 50), torch.full((1, 3, 40, 50), 0.3)):
        assert weight_free.weight_free_flow(picture, picture).abs().max() == 0


@pytest.mark.parametrize("size", [(8, 8), (16, 200), (301, 37)])
def test_odd_sizes(weight_free, flow, size):
    picture = torch.rand(2, 3, *size)
    found = weight_free.weight_free_flow(picture, picture.flip(0))
    assert found.shape == (2, 2, *size) and found.isfinite().all()


def test_consistency_in_closed_form(flow):
    """A shift and its opposite agree but where they leave the picture; a wrong way back does not."""
    there = torch.tensor([3.0, -2.0])[:, None, None].expand(1, 2, 20, 30)
    found = flow.consistent(there, -there)
    assert found[0, 2:, :27].all() and not found[0, :2].any() and not found[0, :, 27:].any()
    assert not flow.consistent(there, -there + 2).any()


def test_inverse_of_a_shift(flow):
    there = torch.tensor([3.0, -2.0])[:, None, None].expand(1, 2, 20, 30)
    assert torch.allclose(flow.inverse(there), -there, atol=1e-5)  # holes go on with what is around them


def test_inverse_and_chain_on_affine_motion(flow, data):
    """Four steps of rotation about the middle: chained they are the whole turn, inverted they are the turn back."""
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")

    def turn(degrees):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        return torch.stack([c * x - s * y - x, s * x + c * y - y])[None]

    disc = x * x + y * y < 15**2
    steps = turn(5).repeat(4, 1, 1, 1)
    assert (flow.chain(steps) - turn(20))[0][:, disc].abs().max() < 1e-3
    assert (flow.inverse(turn(20)) - turn(-20))[0][:, disc].abs().max() < 0.2
    assert (flow.inverse(turn(20)) - turn(-20))[0][:, disc].abs().mean() < 0.05


def test_holes_are_filled_from_around(flow):
    values, known = torch.full((1, 2, 16, 16), 4.0), torch.ones(1, 1, 16, 16)
    values[..., 5:11, 6:10], known[..., 5:11, 6:10] = 99.0, 0.0
    assert torch.allclose(flow.filled(values, known), torch.full_like(values, 4.0), atol=1e-4)


# ---- RAFT ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["raft_small.pth", "raft_large.safetensors"])
def raft_file(request, tmp_path_factory):
    """torchvision's own model with random weights, saved as its files are."""
    from safetensors.torch import save_file
    from torchvision.models import optical_flow

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / request.param
    model = getattr(optical_flow, path.stem)(weights=None)
    with torch.no_grad():
        for p in model.parameters():  # random ones diverge over RAFT's updates
            p *= 0.5
    (torch.save if path.suffix == ".pth" else save_file)(model.state_dict(), str(path))
    return path, model.eval()


def test_raft_is_told_by_its_shapes(raft, flow, raft_file):
    """The same bits as torchvision's model, at a size that needs nothing done to it."""
    path, model = raft_file
    loaded = raft.load_raft(path)
    assert type(loaded) is type(model)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 128, 136, generator=generator)
    with torch.no_grad():
        assert torch.equal(raft.raft_flow(loaded, a, b), model(a * 2 - 1, b * 2 - 1)[-1])
        assert raft.raft_flow(loaded, a[..., :50, :77], b[..., :50, :77]).shape == (1, 2, 50, 77)


def test_raft_scales_lengths_with_size(raft, flow):
    """A network that sees 10 pixels in an enlarged picture means fewer in the small one."""
    def network(a, b):
        return [torch.full((1, 2, *a.shape[-2:]), 10.0)]

    picture = torch.rand(1, 3, 64, 96)  # enlarged to 128 x 192
    assert torch.allclose(raft.raft_flow(network, picture, picture), torch.full((1, 2, 64, 96), 5.0))


def test_files_that_are_not_raft(raft, flow, tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save({"feature_encoder.convnormrelu.0.weight": torch.zeros(32)}, tmp_path / "parts.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(Evil(), tmp_path / "evil.pth")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs")
    for name, message in (("parts.pth", "does not fit torchvision's raft_small"),
                          ("other.pth", "not one of torchvision's RAFT"), ("evil.pth", "cannot be read as weights"),
                          ("text.safetensors", "cannot be read as weights")):
        with pytest.raises(flow.FlowError, match=message):
            raft.load_raft(tmp_path / name)


# ---- what other nodes give -------------------------------------------------------------------------------------------


def test_forms_of_tracks(given, flow):
    """ComfyUI's dict, one JSON string, a list of JSON strings and a tensor say the same."""
    path = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]], [[9.0, 10.0], [11.0, 12.0]]])  # T, N, 2
    points = [[{"x": float(x), "y": float(y)} for x, y in track] for track in path.movedim(1, 0)]
    seen = torch.tensor([[1, 1], [0, 1], [1, 1]], dtype=torch.bool)
    forms = [path, path[None], {"track_path": path, "track_visibility": torch.ones(3, 2)}, {"track_path": path},
             json.dumps(points), [json.dumps(track) for track in points], points,
             json.dumps([[[p["x"], p["y"]] for p in track] for track in points])]
    for form in forms:
        tracks = given.parse_tracks(form)
        assert torch.equal(tracks.path, path) and tracks.visible.all() and tracks.visible.shape == (3, 2)
    assert torch.equal(given.parse_tracks({"track_path": path, "track_visibility": seen}).visible, seen)
    assert torch.equal(given.parse_tracks({"track_path": path, "track_visibility": seen[:, :1]}).visible,
                       seen[:, :1].expand(3, 2))
    points[0][1] = None
    points[1][2] = {"x": None, "y": None}
    assert given.parse_tracks(json.dumps(points)).visible.tolist() == [[True, True], [False, True], [True, False]]
    one = given.parse_tracks(json.dumps(points[1]))
    assert one.path.shape == (3, 1, 2)


@pytest.mark.parametrize("value", ["", "nonsense", "[]", "{}", "3", [["a"]], {"points": []}, torch.zeros(3, 4), None,
                                   '[[{"x": 1}]]', '[[[1, 2]], [[1, 2], [3, 4]]]', torch.zeros(3, 0, 2)])
def test_wrong_tracks(given, flow, value):
    with pytest.raises(flow.FlowError, match="track|expected"):
        given.parse_tracks(value)


def test_flow_around_points(given, flow):
    """Discs around the target points, each with its point's motion; the nearer point wins; outside nothing."""
    target, source = torch.tensor([[10.0, 10.0], [16.0, 10.0]]), torch.tensor([[13.0, 8.0], [10.0, 10.0]])
    found, visible = given.flow_from_points(target, source, 24, 32, 4.0)
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    first, second = ((x - cx).hypot(y - cy) for cx, cy in target)
    assert torch.equal(visible[0], torch.minimum(first, second) <= 4)
    assert torch.equal(found[0][:, (first < second) & (first <= 4)].unique(dim=1), torch.tensor([[3.0], [-2.0]]))
    assert torch.equal(found[0][:, (second < first) & (second <= 4)].unique(dim=1), torch.tensor([[-6.0], [0.0]]))
    assert found[0][:, ~visible[0]].abs().max() == 0
    away, hidden = given.flow_from_points(target[:1], torch.tensor([[-50.0, 0.0]]), 24, 32, 4.0)
    assert not hidden.any() and away.abs().max() == 60
    assert not given.flow_from_points(target[:0], source[:0], 24, 32, 4.0)[1].any()


def test_forms_of_flow(given, flow):
    fields = torch.rand(3, 10, 12, 2)
    expected = fields.movedim(-1, 1)
    for form in (fields, expected, list(fields[:, None]), tuple(expected)):
        assert torch.equal(given.parse_flow(form, 4), expected)
    for wrong, message in ((fields, "3 fields for 5 frames; expected 4"), ("x", "type str"), (fields[0], "shape"),
                           (torch.rand(3, 10, 12, 3), "shape")):
        with pytest.raises(flow.FlowError, match=message):
            given.parse_flow(wrong, 5)
