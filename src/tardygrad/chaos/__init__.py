"""Chaos as a command: train while things are killed, frozen, slowed and refused, and count."""
