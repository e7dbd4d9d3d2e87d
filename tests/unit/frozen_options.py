"""The options of every command, as they were promised."""

from __future__ import annotations

OPTIONS = {
    "": ["--help", "--version"],
    "train": ["--dry-run", "--help", "--out", "--quiet", "--resume", "--set", "[RECIPE]"],
    "simulate": ["--dry-run", "--help", "--like", "--out", "--quiet", "--set", "[RECIPE]"],
    "compare": [
        "--engine",
        "--help",
        "--methods",
        "--out",
        "--own",
        "--seeds",
        "--set",
        "--target",
        "[RECIPE]",
    ],
    "chaos": [
        "--alone",
        "--every",
        "--for",
        "--help",
        "--kinds",
        "--limit",
        "--out",
        "--quiet",
        "--seed",
        "--set",
        "[RUN-OR-RECIPE]",
    ],
    "workers": ["--add", "--help", "--remove", "RUN"],
    "replay": ["--help", "--quiet", "RUN"],
    "ledger": ["--help", "--json", "RUN"],
    "export": ["--checkpoint", "--help", "--out", "RUN"],
    "report": ["--help", "RUN"],
    "recipes": ["--help", "[NAME]"],
    "clean": ["--dry-run", "--help"],
    "doctor": ["--help", "--json"],
}
"""The promise to scripts.  Adding is fine; taking away or renaming breaks somebody's."""
