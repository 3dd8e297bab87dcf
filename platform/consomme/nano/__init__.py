"""How the nano VLM that ships was made; no verb uses it."""
