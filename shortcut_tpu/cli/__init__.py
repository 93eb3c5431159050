"""The command line: flags, configs and console output."""
