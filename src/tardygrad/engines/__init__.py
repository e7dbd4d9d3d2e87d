"""The engines: what interprets the machines' effects, for real or in virtual time."""
