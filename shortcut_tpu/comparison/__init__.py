"""What `compare` is made of: each method's run, the table, the claims."""
