"""Write the page of a preview, which belongs to no run."""

from __future__ import annotations

import os
import tempfile

from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.open import open_store


def write_preview(verb: str, root: str, name: str, page: str) -> str:
    """Write a page below a local root, or into a temporary file, and return its path.

    Raises:
        RecipeError: `name` is no valid name of a run, or the place cannot be written to.
    """
    # Checks the name; opens nothing.
    RunFolder.open(root, verb, name, "preview")
    store = open_store(root)
    if isinstance(store, LocalStore) and "://" not in store.url:
        store.write(f"previews/{name}.html", page.encode())
        return os.path.join(store.url, "previews", f"{name}.html")
    handle, path = tempfile.mkstemp(prefix=f"consomme-{name}-", suffix=".html")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(page)
    return path
