"""One file for each run; `common.py` documents every key."""
