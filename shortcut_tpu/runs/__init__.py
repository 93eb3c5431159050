"""A run's workdir: the claim on it, its checkpoints, and opening it again."""
