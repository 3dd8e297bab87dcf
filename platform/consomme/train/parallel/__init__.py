"""How a model is sharded over ranks: DDP, FSDP2, DeepSpeed."""
