"""The loop and its states: what is trained changes, what is not does not, and an interruption leaves no trace."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Linear, Module, Parameter, Sequential, Tanh


@pytest.fixture(scope="module")
def loop(pack):
    return pack("core.training.loop")


@pytest.fixture(scope="module")
def state(pack):
    return pack("core.training.state")


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


def network() -> Module:
    torch.manual_seed(0)
    return Sequential(Linear(4, 16), Tanh(), Linear(16, 3))


def fit(module: Module):
    """A batch loss: learn a fixed linear map from random inputs, which come from the step's generator."""
    wanted = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0], [0.3, 0.3, 0.3, 0.3]])

    def batch_loss(step, micro, generator):
        x = torch.randn(8, 4, generator=generator)
        error = (module(x) - x @ wanted.T).pow(2).mean()
        return {"loss": error, "largest": x.abs().max()}

    return batch_loss


SETTINGS = {"steps": 30, "learning_rate": 1e-2, "accumulate": 2, "ema": 0.9, "warmup": 5, "save_every": 7, "seed": 3}


def run(loop, folder: Path, stop_after: int | None = None, **changes):
    """A fresh network trained in a folder; ends as a cancelled run does after some steps."""
    module = network()
    trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(**{**SETTINGS, **changes}))

    class Cancelled(Exception):
        pass

    def check_stop():
        if stop_after is not None and trainer.step >= stop_after:
            raise Cancelled

    try:
        loop.train(trainer, fit(module), folder, check_stop=check_stop)
    except Cancelled:
        pass
    return trainer


def same(a, b) -> bool:
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(torch.equal(t, b[n]) for n, t in a.items())


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_the_loss_falls(loop, tmp_path):
    run(loop, tmp_path, steps=300)
    steps = log(tmp_path)
    assert [s["step"] for s in steps] == list(range(1, 301))
    first, last = (sum(s["losses"]["loss"] for s in part) for part in (steps[:20], steps[-20:]))
    assert last < 0.1 * first


def test_only_what_is_given_is_trained(loop, tmp_path):
    module = network()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    chosen = {n: p for n, p in module.named_parameters() if n.startswith("2.")}
    loop.train(loop.Trainer(chosen, loop.TrainSettings(steps=5, learning_rate=1e-2)), fit(module), tmp_path)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("0.")


@pytest.mark.parametrize("stops", [(1,), (6, 7, 8), (13, 29), (0, 30)])
def test_resumed_is_uninterrupted(loop, tmp_path, stops):
    whole = run(loop, tmp_path / "whole")
    for stop in stops:
        run(loop, tmp_path / "parts", stop_after=stop)
    assert same(run(loop, tmp_path / "parts"), whole)
    ours, theirs = (
        [{k: v for k, v in s.items() if k != "seconds"} for s in log(tmp_path / name)] for name in ("parts", "whole"))
    assert ours == theirs


def test_killed_between_states_loses_only_the_steps_since(loop, state, tmp_path):
    """A kill leaves a half-written state and a torn log line; the run goes on from the last whole state."""
    whole = run(loop, tmp_path / "whole")
    run(loop, tmp_path / "killed", steps=14)
    half = tmp_path / "killed" / ".state-000021.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    with (tmp_path / "killed" / "stats.jsonl").open("a") as file:
        file.write('{"step": 15, "losses": {"loss": 1.0}}\n{"step": 16, "lo')
    assert [p.name for p in state.states(tmp_path / "killed")] == ["state-000007", "state-000014"]
    assert same(run(loop, tmp_path / "killed"), whole)
    assert [s["step"] for s in log(tmp_path / "killed")] == list(range(1, 31))


def test_a_damaged_state_is_named(loop, state, tmp_path):
    run(loop, tmp_path, steps=7)
    tensors = tmp_path / "state-000007" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(state.StateError, match="state-000007' cannot be read.*Delete this folder"):
        run(loop, tmp_path)


@pytest.mark.parametrize("change", [
    lambda tensors, name: tensors | {name[:-1] + "X": tensors.pop(name)},
    lambda tensors, name: tensors | {name: tensors[name].reshape(-1, 1)},
    lambda tensors, name: tensors | {name: tensors[name].int()},
], ids=["another name", "another shape", "whole numbers"])
@pytest.mark.parametrize("kind", ["parameter/", "optimizer/exp_avg_sq/", "average/"])
def test_a_state_with_a_wrong_tensor_is_named(loop, state, tmp_path, kind, change):
    run(loop, tmp_path, steps=7)
    path = tmp_path / "state-000007" / "tensors.safetensors"
    tensors = load_file(str(path))
    name = next(n for n in tensors if n.startswith(kind))
    save_file(change(tensors, name), str(path))
    with pytest.raises(state.StateError, match=f"state-000007' is damaged: {kind}.* does not fit. Delete this folder"):
        run(loop, tmp_path)


def test_a_state_of_no_step_is_named(loop, state, tmp_path):
    run(loop, tmp_path, steps=7)
    path = tmp_path / "state-000007" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": "7"}))
    with pytest.raises(state.StateError, match="is damaged: its step is '7'"):
        run(loop, tmp_path)


def test_other_settings_do_not_continue(loop, state, tmp_path):
    run(loop, tmp_path, steps=7)
    with pytest.raises(state.StateError, match="made with learning_rate = 0.01, now it is 0.02"):
        run(loop, tmp_path, learning_rate=0.02)
    assert run(loop, tmp_path, steps=8, save_every=0).step == 8  # its length may change


BEGUN = Path(__file__).parents[2] / "data" / "run_of_0.1.0"


def test_a_run_of_version_0_1_0_continues(loop, tmp_path):
    """A state after 4 steps and the tensors after 9, both written by that version, with averages and a loss factor."""
    module = network()
    with torch.no_grad():  # where it began, without random numbers
        for i, p in enumerate(module.parameters()):
            p.copy_((torch.arange(p.numel()).reshape(p.shape) * (i + 3) % 17 - 8) / 16)
    wanted = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0], [0.3, 0.3, 0.3, 0.3]])

    def batch_loss(step, micro, generator):
        x = torch.randint(-8, 9, (8, 4), generator=generator) / 8
        return {"loss": (module(x) - x @ wanted.T).pow(2).mean()}

    state = tmp_path / "state-000004"
    state.mkdir()
    for name in ("state.json", "tensors.safetensors"):
        (state / name).write_bytes((BEGUN / name).read_bytes())
    (tmp_path / "stats.jsonl").write_bytes((BEGUN / "stats.jsonl").read_bytes())
    settings = loop.TrainSettings(steps=9, learning_rate=1e-2, accumulate=2, ema=0.9, warmup=5, save_every=4, seed=3,
                                  loss_scale=64.0, clip=0.0, weight_decay=0.05)
    trainer = loop.Trainer(dict(module.named_parameters()), settings)
    made = loop.train(trainer, batch_loss, tmp_path, identity={"data": "abc", "signal": "sketch"})
    assert [s.step for s in made] == [5, 6, 7, 8, 9] and [s["step"] for s in log(tmp_path)] == list(range(1, 10))
    finished, found = load_file(str(BEGUN / "finished.safetensors")), trainer.tensors()
    assert found.keys() == finished.keys()
    assert all(torch.allclose(found[n].double(), t.double(), rtol=1e-4, atol=1e-6) for n, t in finished.items())


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00\n", b'{"step": 15, "lo', b"5\n[]\nnull\n", b'{"step": 15, "losses": 3}\n'])
def test_a_damaged_log_is_passed_over(loop, state, tmp_path, damage):
    """The curve skips damaged lines, and so does a resumed run, which writes the lines of its own steps again."""
    whole = run(loop, tmp_path / "whole")
    run(loop, tmp_path / "torn", steps=14)
    path = tmp_path / "torn" / "stats.jsonl"
    path.write_bytes(path.read_bytes() + damage if damage else b"")
    assert len(state.read_log(path)) == (14 if damage else 0)
    assert same(run(loop, tmp_path / "torn"), whole)
    assert [s["step"] for s in log(tmp_path / "torn")] == list(range(1 if damage else 15, 31))


HUGE = "1" + "0" * 400


@pytest.mark.parametrize("step, loss", [(3, HUGE), (HUGE, 1), (-1, 1), (3, "1e308")], ids=range(4))
def test_numbers_that_no_step_gives_are_passed_over_in_a_log(pack, state, tmp_path, step, loss):
    """They ended the run at the next step, when its curve was drawn."""
    path = tmp_path / "stats.jsonl"
    line = f'{{"step": {step}, "losses": {{"loss": {loss}}}}}'
    path.write_text(line + '\n{"step": 4, "losses": {"loss": NaN}}\n{"step": 5, "losses": {"loss": -3e38, "matching": 2}}\n')
    entries = state.read_log(path)
    assert [entry["step"] for entry in entries] == [4, 5]
    pack("core.training.curve").draw_curve([4, 5], {"loss": [entry["losses"]["loss"] for entry in entries]})


def test_only_the_newest_states_stay(loop, state, tmp_path):
    run(loop, tmp_path)
    assert [p.name for p in state.states(tmp_path)] == ["state-000028", "state-000030"]
    assert {p.name for p in tmp_path.iterdir()} == {"state-000028", "state-000030", "stats.jsonl"}


def test_not_a_number_is_caught_before_it_spreads(loop, tmp_path):
    module = network()
    trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(**SETTINGS))
    good = fit(module)

    def turns_bad(step, micro, generator):
        losses = good(step, micro, generator)
        return {**losses, "loss": losses["loss"] * math.nan} if step == 10 else losses

    with pytest.raises(loop.NonFinite, match="At step 10 loss is nan.*weights are still those of step 9"):
        loop.train(trainer, turns_bad, tmp_path)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert same(run(loop, tmp_path), run(loop, tmp_path / "other"))  # and can go on from there


def test_a_bad_step_can_be_left_out(loop, tmp_path):
    """Two steps whose loss is not finite change nothing and are reported; the third in a row ends the run at the last good
    weights."""
    module = network()
    trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(**{**SETTINGS, "tolerate": 2}))
    good, seen = fit(module), []

    def turns_bad(step, micro, generator):
        losses = good(step, micro, generator)
        return {**losses, "loss": losses["loss"] * math.nan} if step in (5, 6, 10, 11, 12) else losses

    def report(step):
        seen.append((step.step, bool(step.left_out), [p.detach().clone() for p in module.parameters()]))

    with pytest.raises(loop.NonFinite, match="At step 12 loss is nan.*weights are still those of step 9"):
        loop.train(trainer, turns_bad, tmp_path, report)
    assert [(n, left) for n, left, _ in seen if left] == [(5, True), (6, True), (10, True), (11, True)]
    weights = {n: w for n, _, w in seen}
    assert all(torch.equal(a, b) for a, b in zip(weights[4], weights[6], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[6], weights[7], strict=True))


def test_a_run_that_learned_nothing_is_an_error_and_leaves_no_state(loop, state, tmp_path):
    """Every step was skipped, but fewer than the limit in a row: there is no result, and no state that prevents another attempt."""
    module = network()
    before = [p.detach().clone() for p in module.parameters()]
    good = fit(module)
    settings = loop.TrainSettings(**{**SETTINGS, "steps": 3, "tolerate": 5, "save_every": 1, "warmup": 0})

    def bad(*args):
        losses = good(*args)
        return {**losses, "loss": losses["loss"] * math.nan}

    with pytest.raises(loop.NonFinite, match="All 3 steps were skipped.*Lower learning_rate.*States: "):
        loop.train(loop.Trainer(dict(module.named_parameters()), settings), bad, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)) and not state.states(tmp_path)
    assert same(run(loop, tmp_path, steps=3, tolerate=5), run(loop, tmp_path / "other", steps=3, tolerate=5))


def test_a_kept_state_in_which_nothing_was_learned_is_not_continued(loop, state, tmp_path):
    """As earlier versions saved it after steps that were all skipped."""
    module = network()
    trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(**SETTINGS))
    state.save_state(tmp_path, 5, trainer.tensors(), loop._binding(trainer, None))
    whole = run(loop, tmp_path / "whole")
    run(loop, tmp_path, stop_after=3)  # stopped before that step, and continued after it
    assert same(run(loop, tmp_path), whole)
    assert [s["step"] for s in log(tmp_path)] == list(range(1, 31))


def test_weights_that_are_not_finite_are_never_saved(loop, state, tmp_path):
    module = network()
    trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(**{**SETTINGS, "save_every": 2}))
    good = fit(module)

    def report(step):
        if step.step == 4:  # as an overflow in the last step would
            with torch.no_grad():
                module[0].weight[0, 0] = math.inf

    with pytest.raises(loop.NonFinite, match="At step 4 1 trained weights are not finite, 0.weight the first"):
        loop.train(trainer, good, tmp_path, report)
    assert [p.name for p in state.states(tmp_path)] == ["state-000002"]


def test_a_full_disk_is_named_and_the_states_before_stay(loop, state, tmp_path, monkeypatch):
    tried = []

    def full(*args):
        tried.append(args)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run(loop, tmp_path, steps=7)
    with monkeypatch.context() as patched, pytest.raises(ValueError, match="state-000014' could not be written: No space left"):
        patched.setattr(state, "save_file", full)
        run(loop, tmp_path)
    assert len(tried) == 1 and [p.name for p in state.states(tmp_path)] == ["state-000007"]
    assert same(run(loop, tmp_path), run(loop, tmp_path / "whole"))


def test_the_loss_factor_gives_way_to_overflow_and_cancels(loop, tmp_path):
    """A power of two on the loss changes nothing but the range; where gradients overflow it is halved and the step repeated."""
    def trained(scale: float):
        module = network()
        settings = loop.TrainSettings(**{**SETTINGS, "loss_scale": scale})
        trainer = loop.Trainer(dict(module.named_parameters()), settings)
        good = fit(module)
        loop.train(trainer, lambda *a: {"loss": 1e4 * good(*a)["loss"]}, tmp_path / f"{scale:g}")
        return trainer, [p.detach() for p in module.parameters()]

    (_, plain), (kept, scaled) = trained(0.0), trained(1024.0)
    assert kept.scale == 1024 and all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))
    overflown, weights = trained(2.0**126)  # fp32 itself overflows here
    assert 1 < overflown.scale < 2.0**126
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, weights, strict=True))


def test_accumulation_is_a_larger_batch(loop, tmp_path):
    """Two micro-batches of 8 are one batch of 16."""
    one, two = network(), network()

    def whole(step, micro, generator):
        inputs = torch.cat([torch.randn(8, 4, generator=loop.step_generator(3, step, m)) for m in range(2)])
        return {"loss": one(inputs).pow(2).mean()}

    def parts(step, micro, generator):
        return {"loss": two(torch.randn(8, 4, generator=generator)).pow(2).mean()}

    for module, loss, count in ((one, whole, 1), (two, parts, 2)):
        settings = loop.TrainSettings(steps=3, learning_rate=1e-2, accumulate=count, seed=3)
        loop.train(loop.Trainer(dict(module.named_parameters()), settings), loss, tmp_path / str(count))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_ema_closed_form(loop, tmp_path):
    """The average of a parameter that moves by known amounts."""
    weight = Parameter(torch.zeros(1))
    trainer = loop.Trainer({"w": weight}, loop.TrainSettings(steps=3, learning_rate=0.0, ema=0.5))
    expected = 0.0
    for step in range(1, 4):
        with torch.no_grad():
            weight.fill_(float(step))
        trainer.advance(lambda *_: {"loss": weight.sum()})
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(trainer.averages["w"]) == pytest.approx(expected, rel=1e-6)


def test_clipping(loop):
    weight = Parameter(torch.zeros(2))
    trainer = loop.Trainer({"w": weight}, loop.TrainSettings(steps=1, clip=1.0))
    step = trainer.advance(lambda *_: {"loss": (weight * torch.tensor([30.0, 40.0])).sum()})
    assert step.gradient_norm == pytest.approx(50.0)
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)


def test_two_processes_average(loop):
    """Gradients are averaged over ranks before the step, and each rank draws its own batch."""
    drawn = [torch.randn(3, generator=loop.step_generator(0, 1, 0, rank)) for rank in range(2)]
    assert not torch.equal(*drawn)
    weight = Parameter(torch.zeros(3))

    def reduce(gradients):
        gradients[0].copy_((drawn[0] + drawn[1]) / 2)

    trainer = loop.Trainer({"w": weight}, loop.TrainSettings(steps=1, clip=0.0), reduce)
    trainer.advance(lambda *_: {"loss": (weight * drawn[0]).sum()})
    assert torch.allclose(weight.grad, (drawn[0] + drawn[1]) / 2)


def test_the_rate_rises_stays_and_falls(loop):
    """Linear warm-up over 10 steps, full until 60, then half a cosine to 0 at 100."""
    settings = loop.TrainSettings(steps=100, learning_rate=2.0, warmup=10, decay_from=60)
    assert [settings.rate(s) for s in (1, 5, 10, 60)] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    assert [settings.rate(s) for s in (70, 80, 90, 100)] == pytest.approx(
        [1 + math.cos(math.pi / 4), 1.0, 1 - math.cos(math.pi / 4), 0.0])
    assert settings.rate(120) == pytest.approx(0.0)


def test_the_optimiser_follows_the_rate(loop, tmp_path):
    """AdamW's first steps on a constant gradient move by the rate itself."""
    weight = Parameter(torch.zeros(1))
    settings = loop.TrainSettings(steps=4, learning_rate=0.5, warmup=2, decay_from=2, weight_decay=0.0)
    places = []
    trainer = loop.Trainer({"w": weight}, settings)
    loop.train(trainer, lambda *_: {"loss": weight.sum()}, tmp_path, report=lambda _: places.append(float(weight.detach())))
    moved = [a - b for a, b in zip([0.0, *places], places, strict=False)]
    assert moved == pytest.approx([settings.rate(s) for s in (1, 2, 3, 4)], abs=1e-6)


def test_a_falling_rate_binds_the_length(loop, state, tmp_path):
    run(loop, tmp_path, steps=7, decay_from=3)
    with pytest.raises(state.StateError, match="made with steps = 7, now it is 9"):
        run(loop, tmp_path, steps=9, decay_from=3)


def test_identity_binds(loop, state, tmp_path):
    module = network()

    def go(steps, **identity):
        trainer = loop.Trainer(dict(module.named_parameters()), loop.TrainSettings(steps=steps))
        loop.train(trainer, fit(module), tmp_path, identity=identity)

    go(2, dataset="a")
    with pytest.raises(state.StateError, match="made with dataset = a, now it is b.*another folder"):
        go(4, dataset="b")
    go(4, dataset="a")


def test_gradient_norms_are_logged(loop, tmp_path):
    run(loop, tmp_path, steps=3)
    assert all(s["gradient_norm"] > 0 and s["seconds"] > 0 for s in log(tmp_path))
