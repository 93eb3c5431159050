"""Weights in and out: other repositories' files made runs, and ours made files for others."""
