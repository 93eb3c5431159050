"""Samplers and guidance."""
