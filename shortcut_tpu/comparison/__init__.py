"""What `compare` does with the runs that it has made."""
