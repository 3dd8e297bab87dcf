"""Models whose code does what the checks at load have to notice."""

import importlib
from typing import Any

import pytest
import torch


def mix_tokens(monkeypatch: pytest.MonkeyPatch, *, looks_ahead: bool) -> None:
    """Let the layers of Llama mix tokens beside attention: all of a row, or those before each."""
    llama = importlib.import_module("transformers.models.llama.modeling_llama")
    inner = llama.LlamaDecoderLayer.forward

    def forward(self: Any, hidden_BTW: torch.Tensor, *args: Any, **more: Any) -> Any:
        if looks_ahead:
            mean_BTW = hidden_BTW.mean(dim=1, keepdim=True)
        else:
            number_T = torch.arange(1, hidden_BTW.shape[1] + 1)[:, None]
            mean_BTW = hidden_BTW.cumsum(dim=1) / number_T
        return inner(self, hidden_BTW + mean_BTW, *args, **more)

    monkeypatch.setattr(llama.LlamaDecoderLayer, "forward", forward)
