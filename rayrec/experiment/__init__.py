"""Experiments: several systems and training seeds on the same rows, as one command with one set of tables."""
