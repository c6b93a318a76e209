"""The command `adamx`."""
