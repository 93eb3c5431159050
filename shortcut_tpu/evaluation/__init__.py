"""Scores of a model: samples to features to distances, all on the mesh."""
