"""Find and open ingredients of a soup: whole models, and adapters of the recipe's base."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from consomme.base.errors import CheckpointError, RecipeError
from consomme.soup.ingredients import Ingredient, open_ingredient
from consomme.soup.methods import MixMethod
from consomme.storage.model_files import ADAPTER, MODEL, FolderKind
from consomme.storage.model_folder import model_content_hash, model_folder, model_hash


def located(model: str) -> tuple[str, FolderKind]:
    """Return the folder of an ingredient on this machine, and whether it is an adapter.

    Args:
        model: As for `model_folder`.

    Raises:
        CheckpointError: There is neither a model nor an adapter.
    """
    try:
        folder = model_folder(model)
    except CheckpointError as no_model:
        try:
            return model_folder(model, kind=ADAPTER), ADAPTER
        except CheckpointError:
            raise no_model from None
    return folder, ADAPTER if _is_only_adapter(Path(folder)) else MODEL


def _is_only_adapter(folder: Path) -> bool:
    """Whether a folder with a model's configuration has no weights but an adapter's."""
    if not (folder / ADAPTER.config).is_file():
        return False
    return all(file.name.startswith("adapter_model") for file in folder.glob("*.safetensors"))


def hashes_of(models: Mapping[str, str], base: str | None) -> list[str]:
    """Return what tells each ingredient apart: its content, for an adapter with that of its base.

    Args:
        models: Label -> model, as for `model_folder`.
        base: The model that adapters are for.

    Raises:
        RecipeError: An adapter has no base.
        CheckpointError: An adapter was trained on another model.
    """
    # Before anything is mixed, reading all weights takes longer than all else.
    with ThreadPoolExecutor(os.cpu_count() or 1, "hash") as pool:
        waiting = [
            pool.submit(copy_context().run, ingredient_hash, model, base, label)
            for label, model in models.items()
        ]
        return [one.result() for one in waiting]


def ingredient_hash(model: str, base: str | None, label: str) -> str:
    """Return what tells one ingredient apart; see `hashes_of`."""
    if check_base(model, base, label) is MODEL:
        return model_hash(model)
    assert base is not None
    digest = f"{model_hash(base)}\n{model_hash(model, kind=ADAPTER)}\n"
    return hashlib.sha256(digest.encode()).hexdigest()


def check_base(model: str, base: str | None, label: str) -> FolderKind:
    """Check that an adapter has its base, and say whether an ingredient is one.

    Args:
        model: As for `model_folder`.
        base: The model that adapters are for.
        label: Of the ingredient.

    Raises:
        RecipeError: An adapter has no base.
        CheckpointError: An adapter names another model, which is here and differs.
    """
    folder, kind = located(model)
    if kind is ADAPTER:
        if base is None:
            raise RecipeError(_no_base(label, folder))
        _check_named_model(folder, model_folder(base), label)
    return kind


def _check_named_model(adapter: str, base: str, label: str) -> None:
    try:
        named = json.loads(Path(adapter, ADAPTER.config).read_bytes())["base_model_name_or_path"]
        own = Path(named)
        if not (own / MODEL.config).is_file() or own.resolve() == Path(base).resolve():
            return
    except (ValueError, KeyError, TypeError):
        # An adapter that names no model; its shapes have to fit.
        return
    if model_content_hash(own, generates=False) != model_content_hash(base, generates=False):
        raise CheckpointError(
            f"ingredients.{label}: the adapter {adapter} was trained on {own}, expected the base"
            f" {base}; leave it out, or make its model the base"
        )


@dataclass(frozen=True, kw_only=True)
class OpenedModels:
    """Models to be mixed, whose headers have been read."""

    ingredients: list[Ingredient]
    """In the order of the recipe."""

    base: Ingredient | None
    """The model that all were tuned from, if one was named."""

    def base_of(self, method: MixMethod) -> Ingredient | None:
        """Return what a method takes differences from, if it does."""
        return self.base if method.needs_base else None


def open_models(models: Mapping[str, str], base: str | None) -> OpenedModels:
    """Open ingredients that have passed `hashes_of`.

    Args:
        models: Label -> model, as for `model_folder`.
        base: The model that they were tuned from, and that adapters are for.
    """
    origin = None if base is None else open_ingredient(model_folder(base), "base", base)
    opened = []
    for label, model in models.items():
        folder, kind = located(model)
        if kind is MODEL:
            opened.append(open_ingredient(folder, label, model))
            continue
        if origin is None:
            raise RecipeError(_no_base(label, folder))
        from consomme.soup.adapter import open_adapter_ingredient

        opened.append(open_adapter_ingredient(folder, origin, label, model))
    return OpenedModels(ingredients=opened, base=origin)


def _no_base(label: str, folder: str) -> str:
    return (
        f"base: missing; ingredients.{label} is an adapter ({folder}), so name the model that it"
        " was trained on"
    )
