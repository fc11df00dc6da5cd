"""The chain of modules after the transformer: the modules themselves, and the analysis of a chain."""
