"""The small text-to-image model that comes with the pack: how it loads, and whether it draws what it is told."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from framepainter_tests.examples import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FILE = ROOT / "models" / "small_text_to_image.safetensors"
PROMPTS = 24


@pytest.fixture(scope="module")
def text_to_image(pack):
    return pack("host.weights.text_to_image")


@pytest.fixture(scope="module")
def loaded(text_to_image):
    return text_to_image.load(FILE)


@pytest.fixture(scope="module")
def captions(pack):
    return pack("core.data.captions")


def encoded(clip, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize(text))


def drawn(loaded, texts: list[str], seed: int, cfg: float = 6.0, steps: int = 20) -> torch.Tensor:
    """Pictures (B, 3, 192, 192) of prompts, by the host's sampler."""
    import comfy.sample

    positive = torch.cat([encoded(loaded.clip, text) for text in texts])
    latent = torch.zeros(len(texts), 4, 24, 24)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        out = comfy.sample.sample(loaded.model, noise, steps, cfg, "ddim", "normal", [[positive, {}]],
                                  [[encoded(loaded.clip, ""), {}]], latent, disable_pbar=True, seed=seed)
        return loaded.vae.decode(out).movedim(-1, 1).clone()


@pytest.fixture(scope="module")
def followed(pack, loaded, captions):
    """How many of the held-out prompts' words are in the pictures, of PROMPTS."""
    read = pack("core.evaluation.captions").read_picture
    subjects = captions.draw_subjects(PROMPTS, torch.Generator().manual_seed(11), held=True)
    texts = [captions.caption(subjects, i) for i in range(PROMPTS)]
    found = Counter()
    for i, picture in enumerate(drawn(loaded, texts, seed=5)):
        said, seen = captions.words(subjects, i), read(picture)
        if seen is not None:
            found.update(size=seen.size == said[1], colour=seen.colour == said[2], shape=seen.shape == said[3],
                         ground=seen.ground == said[6])
    return found


def test_size_of_the_file():
    assert FILE.stat().st_size <= 8e6


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_the_text_encoder_is_clip(loaded, captions):
    """The host's encoding of a prompt equals that of transformers' own CLIP with the same weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with safe_open(str(FILE), "pt") as file:
        heads = int(file.metadata()["framepainter.text_heads"])
    model = loaded.clip.cond_stage_model.clip_l.transformer
    tensors = {n: t.float().clone() for n, t in model.state_dict().items() if n != "text_projection.weight"}
    inner, width = tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape
    reference = CLIPTextModel(CLIPTextConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
                                             num_hidden_layers=2, eos_token_id=49407, attn_implementation="eager")).eval()
    assert not reference.load_state_dict(tensors, strict=False).missing_keys
    tokens = loaded.clip.tokenize("a small red disc on a green ground")["l"]
    expected = reference(input_ids=torch.tensor([[token for token, _ in tokens[0]]])).last_hidden_state
    found = encoded(loaded.clip, "a small red disc on a green ground")
    assert found.shape == (1, 77, width)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_words_that_it_does_not_know_are_one_word(loaded):
    known = encoded(loaded.clip, "a red disc")
    assert torch.equal(encoded(loaded.clip, "a zebra disc"), encoded(loaded.clip, "a cathedral disc"))
    assert not torch.equal(known, encoded(loaded.clip, "a zebra disc"))
    assert not torch.equal(known, encoded(loaded.clip, "a blue disc"))
    long = encoded(loaded.clip, "a very (unusual:1.3) Übergröße \u732b " * 20)
    assert long.shape[1] > 77 and long.shape[1] % 77 == 0 and bool(long.isfinite().all())


def test_a_words_vector_says_nothing_of_other_words(loaded):
    """As trained, so that maps of where a word looks mean that word: its vector hardly depends on the words before it."""
    def at(text: str, word: int) -> torch.Tensor:
        return encoded(loaded.clip, text)[0, 1 + word]

    moved = (at("a red disc on a green ground", 2) - at("a blue disc on a green ground", 2)).norm()
    exchanged = (at("a red disc on a green ground", 2) - at("a red cross on a green ground", 2)).norm()
    assert moved < 0.3 * exchanged


def test_the_unet_is_stable_diffusions(loaded):
    import comfy.latent_formats
    import comfy.model_base
    import comfy.supported_models

    model = loaded.model.model
    assert isinstance(model.model_config, comfy.supported_models.SD15)
    assert isinstance(model.latent_format, comfy.latent_formats.SD15)
    assert model.model_type == comfy.model_base.ModelType.EPS
    assert float(model.model_sampling.sigma_max) == pytest.approx(14.6146, rel=1e-4)


def test_the_autoencoder_keeps_pictures(loaded, captions):
    generator = torch.Generator().manual_seed(21)
    scenes = captions.draw_scenes(captions.draw_subjects(8, generator, held=True), 1, generator)
    pictures = captions.render(scenes, 192)[:, 0].movedim(1, -1)
    with torch.inference_mode():
        latents = loaded.vae.encode(pictures)
        again = loaded.vae.decode(latents)
    assert latents.shape == (8, 4, 24, 24)
    assert -10 * torch.log10((again - pictures).pow(2).mean()) > 36


def test_only_such_files_are_listed(text_to_image):
    assert text_to_image.listed() == [FILE.name]


def test_through_the_node(pack):
    node = pack("nodes.weights").LoadSmallTextToImage
    combo = node.define_schema().inputs[0]
    assert combo.options == [FILE.name]
    with torch.inference_mode():
        model, clip, vae = node.execute(model_file=FILE.name, weight_dtype="fp32").args
    assert model.model.get_dtype() == torch.float32
    assert encoded(clip, "a red disc").shape[-1] == 64 and vae.latent_channels == 4
    with pytest.raises(FileNotFoundError, match=r"other\.safetensors"):
        node.execute(model_file="other.safetensors")
    with pytest.raises(ValueError, match="weight_dtype is 'int3'"):
        node.execute(model_file=FILE.name, weight_dtype="int3")


def test_a_copy_for_training_is_independent(text_to_image, loaded):
    make, arguments = loaded.model.cached_patcher_init
    again = make(*arguments)
    name = "diffusion_model.out.2.weight"
    assert torch.equal(again.model.state_dict()[name], loaded.model.model.state_dict()[name])
    assert again.model is not loaded.model.model


def test_bad_files_are_named(text_to_image, pack, tmp_path):
    error = pack("host.weights.loading").WeightsError
    with safe_open(str(FILE), "pt") as file:
        metadata = file.metadata()
    tensors = load_file(str(FILE))

    def refused(keep: dict, text: dict | None) -> str:
        path = tmp_path / "bad.safetensors"
        save_file(keep, str(path), text)
        with pytest.raises(error, match=r"bad\.safetensors") as caught:
            text_to_image.load(path)
        return str(caught.value)

    assert "Load Checkpoint" in refused(tensors, None)
    for prefix, lost in (("model.diffusion_model.", "output_blocks.5.0.emb_layers.1.bias"),
                         ("first_stage_model.", "decoder.head.bias"),
                         ("cond_stage_model.transformer.", "text_model.final_layer_norm.bias")):
        assert f"missing {lost}" in refused({n: t for n, t in tensors.items() if n != prefix + lost}, metadata)
    for part in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."):
        refused({n: t for n, t in tensors.items() if not n.startswith(part)}, metadata)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(FILE.read_bytes()[:-1000])
    with pytest.raises(error, match="cut off"):
        text_to_image.load(cut)


# ---- how it was trained ----------------------------------------------------------------------------------------------


def test_a_captions_vectors_share_nothing_but_their_own_word(tool, captions):
    recipe = tool("making.small_text_model")
    words = recipe.vocabulary(captions)
    rows, generator = {word: i for i, word in enumerate(words)}, torch.Generator().manual_seed(0)
    subjects = captions.draw_subjects(400, generator)
    texts = recipe.draw_texts(captions, rows, subjects, generator)
    there = texts.place > 0
    kept = texts.single.gather(2, texts.place[..., None])[..., 0]
    for b in range(400):
        said = captions.words(subjects, b)
        assert {words[i] for i in kept[b, there[b]].tolist()} <= {*said, *(recipe.SAME.get(w, w) for w in said)}
        ground = [words[i] for i in kept[b, there[b] & ~texts.of_shape[b]].tolist()]
        assert ground in ([], [captions.GROUNDS[subjects.ground[b]]])
    assert 0.85 < float(there.any(1).float().mean()) < 0.95  # a tenth has no words
    # Elsewhere in the vectors' captions stands the shape's true colour no more often than by chance, which is an eighth.
    colours = [torch.tensor([w == name for w in words])[texts.base[:, :8]].any(1) for name in captions.SUBJECTS]
    named = torch.stack(colours, 1)[torch.arange(400), subjects.colour]
    by_chance = float(torch.stack(colours, 1).float().mean())
    assert float(named.float().mean()) < 1.6 * by_chance


# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "least"), [("colour", 0.9), ("ground", 0.9), ("shape", 0.85), ("size", 0.9)])
def test_prompts_that_it_never_saw_are_followed(followed, word, least):
    assert followed[word] >= least * PROMPTS


def test_without_guidance_or_prompt_it_still_draws_a_shape(pack, loaded):
    read = pack("core.evaluation.captions").read_picture
    assert sum(read(picture) is not None for picture in drawn(loaded, [""] * 6, seed=8, cfg=1.0)) >= 5


def test_words_look_at_what_they_stand_for(tool, text_to_image, captions):
    """Local blending rests on this: a shape's words look at the shape, its ground's word does not."""
    recipe, loaded = tool("making.small_text_model"), text_to_image.load(FILE, torch.float32)
    generator = torch.Generator().manual_seed(31)
    scenes = captions.draw_scenes(captions.draw_subjects(12, generator, held=True), 1, generator)
    texts = [captions.caption(scenes.subjects, i) for i in range(12)]
    watched, kept = recipe.WordMaps(), 1 / (loaded.model.model.model_sampling.sigmas[500] ** 2 + 1)
    with torch.inference_mode():
        clean = 0.18215 * loaded.vae.encode(captions.render(scenes, 192)[:, 0].movedim(1, -1))
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * torch.randn(clean.shape, generator=generator)
        context = torch.cat([encoded(loaded.clip, text) for text in texts])
        loaded.model.model.diffusion_model(noisy, torch.full((12,), 500), context=context, transformer_options=watched.options)
    cover = captions.coverage(scenes.subjects.shape, scenes.centre[:, 0], scenes.radius[:, 0], 24)
    for side in (6, 12):
        looks = torch.stack(watched.maps[side**2]).mean(0)  # (B, L, 77)
        here = torch.nn.functional.adaptive_avg_pool2d(cover[:, None], side).flatten(1) > 0.3
        there = torch.nn.functional.adaptive_avg_pool2d(cover[:, None], side).flatten(1) == 0
        inside, outside = (torch.stack([looks[b, where[b]].mean(0) for b in range(12)]) for where in (here, there))
        contrast = (inside / outside).log().mean(0).exp()[1:8]  # a small red disc on a green
        assert contrast[2] > 3 and contrast[3] > 3 and contrast[6] < 0.5, (side, contrast)
