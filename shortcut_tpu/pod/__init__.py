"""Hosts, chips, mesh and compiled programs of a pod."""
