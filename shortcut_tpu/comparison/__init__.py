"""The parts of `compare`: each method's run, the table, the paper's claims."""
