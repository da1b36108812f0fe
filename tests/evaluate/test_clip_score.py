"""On a tiny random CLIP built here; where transformers is not installed, only what comes before it is tested."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compress.errors import InputError, RunError
from compress.evaluate import optional
from compress.evaluate.clip_score import clip_score

PROMPTS = ["a cat", "two dogs", "rain"]


def images(n: int, channels: int = 3) -> Tensor:
    return torch.rand(n, channels, 20, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nothing is downloaded"):
        clip_score(images(3), PROMPTS, tmp_path, artefact="onnx")
    with pytest.raises(InputError, match="2 images came with 3 prompts"):
        clip_score(images(2), PROMPTS, tmp_path, artefact="onnx")
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs transformers .*compress\[text\]"):
        clip_score(images(3), PROMPTS, tmp_path, artefact="onnx")


def tiny_clip(folder: Path) -> Path:
    """A random CLIP of two layers with a byte-level vocabulary, saved as transformers saves it."""
    transformers: Any = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**size, **ends, "vocab_size": len(tokens), "max_position_embeddings": 77}
    vision = {**size, "image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_score_is_the_mean_of_the_pairs_and_ignores_batching(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    whole = clip_score(images(35), PROMPTS[:2] * 17 + ["rain" * 100], folder, artefact="checkpoint")
    assert (whole.name, whole.n) == ("clip_score", 35)
    assert 0 <= whole.spread["ci95_low"] <= whole.value <= whole.spread["ci95_high"] <= 100
    batch = images(3)
    single = [clip_score(batch[i : i + 1], [PROMPTS[i]], folder, artefact="checkpoint").value for i in range(3)]
    together = clip_score(batch, PROMPTS, folder, artefact="checkpoint").value
    assert together == pytest.approx(sum(single) / 3, abs=1e-4)


def test_grey_images_equal_their_rgb_copies(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    grey = images(3, channels=1)
    scores = [clip_score(x, PROMPTS, folder, artefact="onnx").value for x in (grey, grey.expand(-1, 3, -1, -1))]
    assert scores[0] == scores[1]


def test_broken_images_are_counted(tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "clip")
    broken = images(3)
    broken[1, 0, 0, 0] = math.nan
    with pytest.raises(RunError, match="1 of 3 images"):
        clip_score(broken, PROMPTS, folder, artefact="onnx")
