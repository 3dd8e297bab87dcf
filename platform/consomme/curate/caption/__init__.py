"""How captions are asked for, checked and merged: prompts, guards, refusals, canaries."""
