"""Training tools that know nothing of GANs or video."""
