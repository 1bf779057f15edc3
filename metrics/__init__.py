"""Metrics: what is measured on videos and views, and the networks that measure."""
