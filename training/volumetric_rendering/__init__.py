"""Volume rendering as pure functions of rays, samples and a field callback."""
