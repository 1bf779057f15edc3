"""What was computed before, by content."""
