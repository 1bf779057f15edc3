"""Data sets of clips: reading, sampling."""
