"""What a compiled program does, read from its scheduled HLO: operations, collectives, limits."""
