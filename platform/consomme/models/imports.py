"""Import transformers and PEFT so that all of their classes load, also with a CPU build of torch.

No module of consomme imports transformers or PEFT at the top, but those of `consomme_vlm`, which
are classes of it: whoever needs them calls `import_transformers` or `import_peft`, so preparing a
process (`consomme.models.media_packages`) cannot be forgotten, and the order of imports carries no
meaning.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from consomme.base.process import imports_without_gc
from consomme.models.media_packages import LOCK, patch_media_packages


def import_transformers() -> Any:
    """Return the `transformers` module, any class of which can be imported.

    The first call in a process patches what has to be patched, imports what all models need, makes
    our own VLMs known to the `Auto` classes, and ends the bars of transformers.
    """
    with LOCK:
        _import_modeling()
    import transformers

    return transformers


def import_peft() -> Any:
    """Return the `peft` module; it imports models of transformers."""
    import_transformers()
    with imports_without_gc():
        import peft
    return peft


@cache
def _import_modeling() -> None:
    with imports_without_gc():
        patch_media_packages()
        # Every model class needs it; it is most of the import time.
        import transformers.modeling_utils  # noqa: F401

        # A bar for each model that is opened would drown what a run says of itself.
        from transformers.utils import logging

        from consomme.models.consomme_vlm.registration import register

        logging.disable_progress_bar()
        register()
