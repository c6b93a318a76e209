"""Readers of bytes that nobody vouches for."""
