"""Model soups: choosing ingredients, and averaging their weights."""
