"""The workdir of a run: who may write to it, its checkpoints, and a run opened again."""
