"""Measurements: `make bench`, or `python -m benchmarks [FIGURE ...]` from the repository's root."""
