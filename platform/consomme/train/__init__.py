"""Training: layer selection, trainable parts, data order, the loop, and how the nano VLM was made."""
