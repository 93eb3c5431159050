"""Imports weights of other repositories as runs, and exports ours."""
