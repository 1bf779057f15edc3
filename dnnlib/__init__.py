"""Plain-Python helpers: configuration, logging, formatting. No torch, no knowledge of GANs."""
