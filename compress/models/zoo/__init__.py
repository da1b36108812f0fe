"""The bundled models: small, trained here, enough to try and to test every stage without a download."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from compress.errors import ModelError


@dataclass(frozen=True)
class ZooEntry:
    """One bundled model: what it is, and under which terms it and its data stand.

    `options` are the query keys that `zoo://NAME?key=value` takes.
    """

    name: str
    title: str
    licence: str
    citation: str
    options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the weights are, if they were installed."""
        return Path(__file__).parent / self.name


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry(
            name="digits-dit",
            title="Class-conditional DiT, 8 blocks of width 128, on 16x16 handwritten digits",
            licence="Apache-2.0",
            citation="Data: MNIST (LeCun, Cortes and Burges 1998). Architecture: DiT (Peebles and Xie 2023).",
            options=("stress",),
        ),
        ZooEntry(
            name="digits-unet",
            title="Class-conditional U-Net, widths 32, 64 and 128 with attention, on 16x16 handwritten digits",
            licence="Apache-2.0",
            citation="Data: MNIST (LeCun, Cortes and Burges 1998). Architecture: DDPM (Ho et al. 2020).",
            options=("stress",),
        ),
    )
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry of a bundled model.

    Raises:
        ModelError: there is no such model.
    """
    if name not in ZOO:
        near = get_close_matches(name, ZOO, n=1)
        hint = f"did you mean zoo://{near[0]}?" if near else f"there is {', '.join(sorted(ZOO))}"
        raise ModelError(f"there is no bundled model {name!r}", hint=hint)
    return ZOO[name]


def zoo_folder(name: str) -> Path:
    """Folder of a bundled model.

    Raises:
        ModelError: there is no such model, or its weights are not installed.
    """
    folder = zoo_entry(name).folder
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            f"the weights of zoo://{name} are not part of this installation",
            where=str(folder),
            hint=f"train them: python -m compress.models.zoo.train {name} --output DIR",
        )
    return folder
