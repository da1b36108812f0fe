from pathlib import Path

import pytest
from tiny import tiny_dit_pipeline

from compress.errors import ModelError
from compress.models import zoo
from compress.models.zoo import ZOO, zoo_entry, zoo_folder


def test_every_entry_says_what_it_is() -> None:
    assert "digits-dit" in ZOO
    for name, entry in ZOO.items():
        assert entry.name == name and entry.title and entry.licence and "MNIST" in entry.citation
        assert entry.folder == Path(zoo.__file__).parent / name


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(ModelError, match="did you mean zoo://digits-dit"):
        zoo_entry("digits_dit")
    with pytest.raises(ModelError, match="there is digits-dit"):
        zoo_entry("xyz")


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ModelError, match="not part of this installation"):
        zoo_folder("digits-dit")
    tiny_dit_pipeline(tmp_path / "digits-dit")
    assert zoo_folder("digits-dit") == tmp_path / "digits-dit"
