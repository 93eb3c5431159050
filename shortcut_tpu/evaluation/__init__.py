"""Scores models: samples to features to distances, all on the mesh."""
