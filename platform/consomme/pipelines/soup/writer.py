"""What a soup run has resolved, and how it writes soups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consomme.base.manifest import FileSum
from consomme.pipelines.soup.recipe import SoupRecipe
from consomme.soup.blends import Candidate, Grouping, TensorGroups
from consomme.soup.ingredients import Ingredient
from consomme.soup.methods import METHODS, MixMethod
from consomme.soup.mixing import STORED_AS, ModelMix
from consomme.soup.opening import OpenedModels
from consomme.soup.writing import write_soup
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.output_folder import output_folder


@dataclass(frozen=True, kw_only=True)
class SoupInputs:
    """The ingredients, in the order of the recipe."""

    models: list[str]
    """Where any node finds them; see `portable_path`."""

    hashes: list[str]
    """Hashes of their content."""

    base: str | None = None
    """The model that guards compare with, as `models`."""

    base_hash: str | None = None
    """Hash of its content."""


@dataclass(frozen=True, kw_only=True)
class SoupWriter:
    """Writes soups of some ingredients into a run folder, as a recipe says."""

    folder: RunFolder
    method: MixMethod
    base: Ingredient | None
    """What the method takes differences from, if it does."""

    dtype: str | None
    max_shard_bytes: int | None

    @classmethod
    def of(cls, recipe: SoupRecipe, folder: RunFolder, opened: OpenedModels) -> SoupWriter:
        """Return what writes soups of a recipe into a folder."""
        method = METHODS.build(recipe.method, "method")
        largest = recipe.max_shard_gb
        return cls(
            folder=folder,
            method=method,
            base=opened.base_of(method),
            dtype=STORED_AS[recipe.dtype] if recipe.dtype else None,
            max_shard_bytes=None if largest is None else int(largest * 1e9),
        )

    def mix(self, chosen: Sequence[Ingredient], weights: Sequence[float] | None = None) -> ModelMix:
        """Return how some ingredients are mixed.

        Raises:
            CheckpointError: They cannot be.
        """
        return ModelMix.of(chosen, weights, method=self.method, base=self.base, dtype=self.dtype)

    def mix_candidate(
        self,
        opened: Sequence[Ingredient],
        candidate: Candidate,
        groups: Mapping[Grouping, TensorGroups],
    ) -> ModelMix:
        """Return how a candidate is mixed that a search chose among ingredients."""
        return ModelMix.of_candidate(
            opened, candidate, groups, method=self.method, base=self.base, dtype=self.dtype
        )

    def write(self, path: str, mix: ModelMix) -> dict[str, FileSum]:
        """Write a soup and return the sums of its files."""
        with output_folder(self.folder.store, path) as output:
            folder = output.folder / path
            folder.parent.mkdir(parents=True, exist_ok=True)
            write_soup(folder, mix, max_shard_bytes=self.max_shard_bytes)
        return output.written
