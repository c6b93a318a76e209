"""Checkpoints that are folders of several files."""
