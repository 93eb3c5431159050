"""One file a run; `common.py` documents every key. `get_config()` returns the run's ConfigDict."""
