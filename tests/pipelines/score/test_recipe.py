"""What a score recipe may not say is said before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from consomme.base.errors import RecipeError
from consomme.pipelines.score.recipe import ScoreRecipe


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "vllm", "formula": "points_script"}, "formula: found points_script"),
        ({"engine": "vllm", "dtype": "float16"}, "dtype: found float16"),
        ({"engine": "vllm", "token_budget": 512}, "token_budget: found 512"),
        ({"engine": "vllm", "actors_per_gpu": 2}, "actors_per_gpu: found 2"),
        ({"actors_per_gpu": 0}, "actors_per_gpu: found 0, expected at least 1"),
        ({"tensor_parallel": 2}, "set engine: vllm"),
        ({"prompts": {"ocr": ["pool:transcribe"]}}, "did you mean 'transcribe_zh'"),
        ({"prompt": "Was it {original}?"}, r"prompt: found the placeholder {original}; .* none"),
        ({"prompts": {"ocr": ["Read {text}."]}}, r"prompts.ocr: found the placeholder {text}"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ScoreRecipe(
            name="x", model="package://models/nano", root=str(tmp_path), inputs=("none",), **changes
        )
