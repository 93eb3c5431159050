"""The machine: its hosts, chips, mesh and compiled programs."""
