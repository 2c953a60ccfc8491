"""Logits to text to scores, at every depth."""
