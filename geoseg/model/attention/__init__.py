"""Attentions: how tokens attend to each other on their way through the blocks."""
