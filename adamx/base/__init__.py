"""Adam on one array, and the checks and trees that every other room uses."""
