"""The Adam state within any Optax state: its arrays, and where they live."""
