"""The whole step at once: gradients in, parameters out."""
