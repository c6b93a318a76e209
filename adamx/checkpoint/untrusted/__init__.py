"""Readers of untrusted bytes."""
