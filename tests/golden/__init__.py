"""Recorded data of the frameworks."""

from pathlib import Path

WILD = Path(__file__).parent / "wild"
