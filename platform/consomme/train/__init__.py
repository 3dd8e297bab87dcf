"""Training: layer selection, trainable parts, data order, the loop; how the nano VLM was made."""
