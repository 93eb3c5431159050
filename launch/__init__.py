"""Ways to start a run: rehearsed here, or on a pod."""
