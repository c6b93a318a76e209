"""One module for each way in which a checkpoint lies on disk."""
