"""The configuration: fields with descriptions, recipes, overrides. No torch."""
