"""Measures of generated portrait videos."""
