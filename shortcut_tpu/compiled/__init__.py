"""Analyses compiled programs from their scheduled HLO: operations, transfers, limits."""
