"""Studies of effects: what ``make reproduce`` runs, and what docs/studies.md shows."""
