"""Starts runs: rehearsed on this machine, or on a pod."""
