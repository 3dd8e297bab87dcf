"""Make the Auto classes of transformers open folders with consomme's processors."""

from __future__ import annotations

from functools import cache
from typing import Any

from consomme.models.imports import import_transformers


def registered_transformers() -> Any:
    """Return `transformers`, whose Auto classes know consomme's processors by their names.

    A program that is not consomme's calls this once before `AutoProcessor.from_pretrained`.
    """
    hf = import_transformers()
    _register()
    return hf


@cache
def _register() -> None:
    from consomme.models.tiling.image_processor import ConsommeTilingImageProcessor
    from consomme.models.tiling.processor import ConsommeTilingProcessor

    hf = import_transformers()
    base: Any = hf.PreTrainedConfig

    class ConsommeTilingConfig(base):  # type: ignore[misc]
        """The key that a registration needs; the processors serve models of any config."""

        model_type = "consomme_tiling"

    hf.AutoImageProcessor.register(
        ConsommeTilingConfig, image_processor_classes={"pil": ConsommeTilingImageProcessor}
    )
    hf.AutoProcessor.register(ConsommeTilingConfig, ConsommeTilingProcessor)
