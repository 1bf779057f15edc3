"""The mathematics of the metrics."""
