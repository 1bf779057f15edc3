"""Measures of generated clips, and the networks they need."""
