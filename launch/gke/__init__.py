"""Runs on Google Kubernetes Engine: a JobSet, an XPK command and an image."""
