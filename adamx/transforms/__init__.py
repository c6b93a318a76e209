"""Adam and its neighbours as Optax transformations and schedules."""
