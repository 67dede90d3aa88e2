"""A base in one file of llama.cpp's format answers as the model that was written into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamorouter.config.compose import compose
from dynamorouter.errors import ConfigError
from dynamorouter.model.base.base import Base
from dynamorouter.model.base.config import spec_at
from dynamorouter.system.system import System
from support.tinygguf import write_gguf


def test_a_gguf_file_is_a_base(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny-q8.gguf")
    system = System.new(tmp_path / "tiny-q8.gguf", device="cpu")
    base = system.bases["tiny-q8"]
    assert (base.kind, base.depth, base.width) == ("decoder", 4, 32)
    (window,) = base.encoder.windows([("a tale of two", None)], max_tokens=32, stride=8)
    batch = base.encoder.collate([window.encoding], base.device)
    with torch.inference_mode():
        found = base.logits(base.forward(batch, None))
        wanted = model(batch.ids).logits
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)  # some weights are in eight bits
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.9
    system.save(tmp_path / "system")
    assert System.load(tmp_path / "system", device="cpu").bases["tiny-q8"].digest == base.digest


def test_a_broken_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(ConfigError, match=r"'half' cannot be loaded from .*half\.gguf"):
        System.new(tmp_path / "half.gguf")


def test_a_place_is_a_base_in_settings_too(tiny_folder, tmp_path: Path) -> None:
    folder = tiny_folder("bert")
    config = compose("quickstart", [f"base={folder}", "base.pooling=mean"])
    assert config.base.path == str(folder.resolve()) and config.base.name == "bert" and config.base.pooling == "mean"
    (tmp_path / "mine.gguf").touch()
    spec = spec_at(str(tmp_path / "mine.gguf"))
    assert spec is not None and spec.name == "mine"
    assert compose("quickstart", ["base=someone/some-model"]).base.path == "someone/some-model"
    assert spec_at(str(tmp_path)) is None and spec_at("minilm") is None and spec_at("no/such.gguf") is None
    with pytest.raises(ConfigError, match=r"base: unknown choice 'nothing'.*a folder with a config.json, a GGUF file"):
        compose("quickstart", ["base=nothing"])


def test_a_hub_id_without_a_network_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"(?s)some-model.*HF_HUB_OFFLINE"):
        Base.load(spec_at("someone/some-model"), device=torch.device("cpu"))  # type: ignore[arg-type]
