"""Video-P2P's nodes at the edges of their inputs, and a whole edit through them and the host's own sampler node."""

from __future__ import annotations

import json

import folder_paths
import pytest
import torch
from framepainter_tests import text_model

FRAMES, SIDE, STEPS, WIDTH = 3, 16, 4, 16


@pytest.fixture(scope="module")
def nodes(pack):
    found = {node.define_schema().node_id: node for node in pack("nodes").NODES}

    def call(name: str, **inputs):
        node = found[f"FramePainter{name}"]
        node.hidden = type("Hidden", (), {"unique_id": None, "prompt": None, "extra_pnginfo": None})()
        with torch.inference_mode():
            return node.execute(**inputs).args

    return call


@pytest.fixture(scope="module")
def clip(pack):
    """A random text encoder of the small network's width, with the real tokenizer."""
    generator = torch.Generator().manual_seed(1)
    names = pack("core.weights.text_to_image")
    layers = {f"text_model.encoder.layers.{n}.mlp.fc1.weight": (32, WIDTH) for n in range(2)}
    shapes = names.expected_text({names.TABLE: (names.TOKENS, WIDTH), **layers})
    tensors = {n: torch.randn(s, generator=generator) * (0.5 if len(s) > 1 else 0.1) for n, s in shapes.items()}
    return pack("host.weights.building").build_clip(tensors, 2)


@pytest.fixture(scope="module")
def model(pack):
    return text_model.inflated(pack, text_model.small_tensors(pack))


@pytest.fixture(scope="module")
def video():
    return {"samples": torch.randn(FRAMES, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(2))}


def edited(nodes, clip, source="a cat sits on the mat", edit="a small dog sits on the mat", words="", **more):
    return nodes("PromptEdit", clip=clip, source_text=source, edited_text=edit, words=words, **more)


@pytest.fixture(scope="module")
def empty(pack, clip):
    with torch.inference_mode():
        return pack("host.attention.prompt_text").encode(clip, "")


@pytest.fixture(scope="module")
def inverted(nodes, clip, model, video):
    """LATENT, trajectory and SIGMAS of the video."""
    return nodes("InvertDDIM", model=model, positive=edited(nodes, clip)[0], latent=video, steps=STEPS)


def attention(nodes, model, plan, **more):
    settings = {"source_branch": "stored trajectory", "cross_steps": 0.6, "temporal_steps": 0.5, "blend": True,
                "blend_threshold": 0.3}
    return nodes("PromptAttention", model=model, plan=plan, **{**settings, **more})[0]


def sampled(model, positive, negative, inverted, cfg=5.0):
    """The host's own node, as on the canvas."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import SamplerCustom

    with torch.inference_mode():
        out = SamplerCustom().sample(model, False, 0, cfg, positive, negative, comfy.samplers.ksampler("euler"), inverted[2],
                                     inverted[0])
    return getattr(out, "args", out)[0]


def test_whole_edit(nodes, clip, model, video, empty, inverted):
    source, positive, plan, picture = edited(nodes, clip, words="@cat, @dog *2")
    assert picture.shape[0] == 1 and picture.shape[-1] == 3 and picture.min() >= 0 and picture.max() <= 1
    latent, trajectory, schedule = inverted
    assert trajectory.states.shape[0] == STEPS + 1 == len(schedule)
    on = attention(nodes, model, plan, trajectory=trajectory, blend_threshold=0.99)
    found = sampled(on, positive, empty, inverted)
    assert found["samples"].shape == video["samples"].shape
    mask, maps, every, area = nodes("WordMap", model=on, positive=positive, latent=found, words="", prompt="edited", threshold=0.99)
    assert mask.shape == area.shape == (FRAMES, 8 * SIDE, 8 * SIDE) and maps.shape == (FRAMES, 8 * SIDE, 8 * SIDE, 3)
    assert set(mask.unique().tolist()) <= {0.0, 1.0} and 0 < float(mask.mean()) < 1 and 0 < float(area.mean()) < 1
    cells = area[:, None, ::8, ::8].bool().expand_as(video["samples"])
    moved = (found["samples"] - video["samples"]).abs()
    assert moved[~cells].max() < 1e-5 < moved[cells].max()
    assert every.shape[0] == 1
    over = nodes("WordMap", model=on, positive=positive, latent=found, words="mat, sits", prompt="source", threshold=0.99,
                 images=torch.rand(FRAMES, 100, 100, 3))
    assert over[1].shape == maps.shape and not torch.equal(over[0], mask)


def test_word_map_without_its_run(nodes, clip, model, inverted, caplog):
    """The sampler's result may come from the host's cache, the model from a new run of its node."""
    _, positive, plan, _ = edited(nodes, clip)
    for more in ({"trajectory": inverted[1]}, {"source_branch": "fast"}):
        on = attention(nodes, model, plan, **more)
        mask, _, _, area = nodes("WordMap", model=on, positive=positive, latent=inverted[0], words="dog", prompt="edited",
                                 threshold=0.99)
        assert 0 < float(mask.mean()) < 1 and bool((area == 1).all())
    assert "Prompt Attention" not in caplog.text


def test_null_text_leads_back(nodes, clip, model, video, empty, inverted):
    null_text, report = nodes("NullText", model=model, trajectory=inverted[1], negative=empty, guidance=5.0, iterations=2)
    assert null_text.done == STEPS and f"{STEPS} steps, {2 * STEPS} updates" in report
    _, positive, plan, _ = edited(nodes, clip)
    on = attention(nodes, model, plan, trajectory=inverted[1], null_text=null_text, source_branch="null-text")
    assert torch.isfinite(sampled(on, positive, empty, inverted)["samples"]).all()


def test_a_trajectory_from_the_disk_serves_as_well(nodes, clip, model, empty, inverted, tmp_path, monkeypatch):
    for kind in ("output", "input"):
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path))
    nodes("SaveTrajectory", trajectory=inverted[1], filename_prefix="trajectories/video")
    (path,) = tmp_path.rglob("*.safetensors")
    loaded = nodes("LoadTrajectory", file=path.name)
    trajectory = next(x for x in loaded if hasattr(x, "states"))
    assert trajectory.digest() == inverted[1].digest()
    _, positive, plan, _ = edited(nodes, clip)
    results = [sampled(attention(nodes, model, plan, trajectory=t), positive, empty, inverted)["samples"]
               for t in (inverted[1], trajectory)]
    assert torch.equal(*results)


def test_a_placeholder_mask_is_none_and_an_empty_one_is_not(nodes, clip, model, video, empty, inverted):
    _, positive, plan, _ = edited(nodes, clip)

    def run(mask):
        on = attention(nodes, model, plan, trajectory=inverted[1], blend_mask=mask)
        return sampled(on, positive, empty, inverted)["samples"]

    assert torch.equal(run(torch.zeros(1, 64, 64)), run(None))
    assert (run(torch.zeros(128, 128)) - video["samples"]).abs().max() < 1e-5


def test_emphasis_disturbs_no_alignment(nodes, clip):
    plain = edited(nodes, clip)
    strong = edited(nodes, clip, source="a (cat:1.4) sits on the mat", edit="a small dog sits on the (mat)")
    assert strong[2].edit == plain[2].edit
    assert not torch.equal(strong[0][0][0], plain[0][0][0]) and not torch.equal(strong[1][0][0], plain[1][0][0])
    alone = edited(nodes, clip, source="a cat", edit="a (cat:1.4)")  # the embedding alone changes
    assert not alone[2].edit.changes


def test_words_as_the_editor_writes_them(pack, nodes, clip):
    by_text = edited(nodes, clip, words="dog *2, @cat, @dog")[2].edit
    state = json.dumps(pack("core.attention.words").state_of(by_text))
    assert edited(nodes, clip, words=state)[2].edit.marks == by_text.marks


@pytest.mark.parametrize("inputs, message", [
    (dict(words="horse *2"), "Prompt Edit: 'words' does not fit the prompts: the word 'horse' is not in the edited prompt"),
    (dict(source="cat " * 80), "Prompt Edit: 'source_text' has 80 tokens; words can be aligned in prompts of at most 75"),
    (dict(edit="dog " * 76), "Prompt Edit: 'edited_text' has 76 tokens"),
    (dict(edit="a cat sits on the mat"), "Prompt Edit: nothing is to change: 'source_text' and 'edited_text' are equal"),
    (dict(alignment="swap word by word"), "the source prompt has 6 words, the edited one 7"),
    (dict(alignment="by feeling"), "Prompt Edit: alignment is 'by feeling'; choose one of automatic"),
])
def test_prompts_that_cannot_be_edited_are_refused(nodes, clip, inputs, message):
    with pytest.raises(ValueError, match=message):
        edited(nodes, clip, **inputs)


def test_another_text_encoder_is_refused_by_name(nodes):
    import comfy.sdxl_clip

    tokenizer = comfy.sdxl_clip.SDXLTokenizer()
    other = type("Clip", (), {"tokenizer": tokenizer, "tokenize": lambda self, text: tokenizer.tokenize_with_weights(text)})()
    with pytest.raises(ValueError, match="Prompt Edit: 'clip' has the text encoders g, l;.*SD 1.5 checkpoint"):
        edited(nodes, other)


def test_one_frame_is_refused(nodes, clip, model):
    with pytest.raises(ValueError, match="Invert DDIM: 'latent' has one frame"):
        nodes("InvertDDIM", model=model, positive=edited(nodes, clip)[0], steps=4,
              latent={"samples": torch.zeros(1, 4, SIDE, SIDE)})


def test_what_does_not_belong_together_is_refused(pack, nodes, clip, model, empty, inverted):
    _, positive, plan, _ = edited(nodes, clip)
    other = edited(nodes, clip, source="a bird sits on the mat")[2]

    def refused(message, plan=plan, model=model, **more):
        with pytest.raises(ValueError, match=f"Prompt Attention: {message}"):
            attention(nodes, model, plan, **more)

    refused("'trajectory' was made with another source prompt than 'plan'", plan=other, trajectory=inverted[1])
    refused("source_branch 'stored trajectory' needs 'trajectory'")
    refused("source_branch 'null-text' needs 'null_text'", trajectory=inverted[1], source_branch="null-text")
    refused("source_branch is 'slow'; choose one of", source_branch="slow")
    refused("cross_start 0.7 is after cross_steps 0.6", cross_start=0.7, trajectory=inverted[1])
    plain = text_model.build(pack, text_model.split(text_model.small_tensors(pack))[0])
    refused("in 'model' the frames do not see each other. Put Video Text Model", model=plain, trajectory=inverted[1])


def test_other_families_are_refused_by_name(nodes, clip, model, video, empty, inverted):
    source, positive, plan, _ = edited(nodes, clip)
    on = attention(nodes, model, plan, trajectory=inverted[1])
    for family in ("SDXL", "SVD_img2vid", "Flux"):
        for title, run, given in (
                ("Invert DDIM", lambda m: nodes("InvertDDIM", model=m, positive=source, latent=video, steps=STEPS), model),
                ("Null-Text", lambda m: nodes("NullText", model=m, trajectory=inverted[1], negative=empty, guidance=5.0,
                                              iterations=2), model),
                ("Prompt Attention", lambda m: attention(nodes, m, plan, trajectory=inverted[1]), model),
                ("Word Map", lambda m: nodes("WordMap", model=m, positive=positive, latent=inverted[0], words="dog",
                                             prompt="edited", threshold=0.3), on)):
            with pytest.raises(ValueError, match=f"{title}: the 'model' input is a {family} model .*Load Checkpoint with an SD 1"):
                run(text_model.of_family(given, family))


def test_a_trajectory_of_something_else_is_refused(pack, nodes, clip, model, empty, inverted):
    """Of another model, another size, another number of steps: by the node that it goes into, or by the sampler."""
    source, positive, plan, _ = edited(nodes, clip)
    other = text_model.inflated(pack, text_model.small_tensors(pack, seed=5))
    null_text = {"trajectory": inverted[1], "negative": empty, "guidance": 5.0, "iterations": 1}
    with pytest.raises(ValueError, match="Null-Text: 'trajectory' was made with another model than 'model'"):
        nodes("NullText", model=other, **null_text)
    with pytest.raises(ValueError, match="Prompt Attention: 'trajectory' was made with another model than 'model'"):
        attention(nodes, other, plan, trajectory=inverted[1])
    small = nodes("InvertDDIM", model=model, positive=source, steps=STEPS, latent={"samples": torch.rand(FRAMES, 4, 8, SIDE)})
    found = nodes("NullText", model=model, **{**null_text, "trajectory": small[1]})[0]
    with pytest.raises(ValueError, match="Prompt Attention: 'null_text' is of a video of 3 frames of 128 x 64 pixels"):
        attention(nodes, model, plan, trajectory=inverted[1], null_text=found, source_branch="null-text")
    another = nodes("InvertDDIM", model=model, positive=source, steps=STEPS,
                    latent={"samples": torch.randn(inverted[0]["samples"].shape, generator=torch.Generator().manual_seed(7))})
    found = nodes("NullText", model=model, **{**null_text, "trajectory": another[1]})[0]
    attention(nodes, model, plan, trajectory=another[1], null_text=found, source_branch="null-text")
    with pytest.raises(ValueError, match="Prompt Attention: 'null_text' was made from another inversion than 'trajectory'"):
        attention(nodes, model, plan, trajectory=inverted[1], null_text=found, source_branch="null-text")
    for wrong, message in (((small[0], *inverted[1:]), "'trajectory' is for 128 x 128 pixels, the latent to sample for 128 x 64"),
                           ((*inverted[:2], inverted[2][::2]), "'trajectory' was made with 4 steps .*the sampler runs 2 steps")):
        with pytest.raises(ValueError, match=f"Prompt Attention: {message}"):
            sampled(attention(nodes, model, plan, trajectory=inverted[1]), positive, empty, wrong)


def test_word_map_refuses_what_it_cannot_show(nodes, clip, model, empty, inverted):
    _, positive, plan, _ = edited(nodes, clip)
    on = attention(nodes, model, plan, trajectory=inverted[1])

    def refused(message, **inputs):
        given = {"model": on, "positive": positive, "latent": inverted[0], "words": "dog", "prompt": "edited", "threshold": 0.3}
        with pytest.raises(ValueError, match=f"Word Map: {message}"):
            nodes("WordMap", **{**given, **inputs})

    refused("'model' has no Prompt Attention", model=model)
    refused("the word 'horse' is not in the edited prompt, which has a, small, dog", words="horse")
    refused("prompt is 'both'; choose one of edited, source", prompt="both")
    refused("'images' has 2 frames, the edit has 3", images=torch.zeros(2, 64, 64, 3))
    refused("'images' are 128 x 64 pixels, the edit 128 x 128", images=torch.zeros(3, 64, 128, 3))


def test_the_page_is_told_what_the_node_does(pack, nodes, clip):
    chips, state_of = pack("host.attention.word_chips"), pack("core.attention.words").state_of
    texts = {"source": "a (cat:1.3) sits\non the photorealistic mat", "edited": "a small Spider-Man  sits on the mat",
             "words": "@cat > Spider-Man *2"}
    for label in chips.ALIGNMENTS:
        if label == "swap word by word":
            continue
        told = chips.answer({**texts, "alignment": label})
        edit = edited(nodes, clip, texts["source"], texts["edited"], texts["words"], alignment=label)[2].edit
        assert [told[name]["chips"] for name in chips.LISTS] == [state_of(edit)[name] for name in chips.LISTS]
        assert told["source"]["tokens"] == len(edit.source.ids) - 2 and told["problem"] is None
    refused = chips.answer({**texts, "alignment": "swap word by word", "edited": "dog " * 90})
    assert refused["edited"]["tokens"] == 90 and "at most 75" in refused["problem"] and refused["said"] is None
    for wrong in (3, {"source": 4}, {"words": "a" * 20_001}, {"alignment": []}, {"as_released": "yes"}):
        with pytest.raises(ValueError, match="expected|must be"):
            chips.answer(wrong)
