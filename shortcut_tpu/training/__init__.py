"""A config made into a train step, and what that is made of."""
