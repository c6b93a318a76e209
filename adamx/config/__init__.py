"""One neutral description of every framework's Adam."""
