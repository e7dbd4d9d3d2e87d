"""What a run leaves on disk: its directory, its checkpoints, and writes that are whole or absent.

``atomic`` writes single files, ``checkpoints`` groups of them that become visible together, and
``run_directory`` is the one place that knows where everything of a run lies.  Nothing is imported
here, so that a command which only needs a path does not pay for torch.
"""
