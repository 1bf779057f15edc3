"""PV3D itself: cameras, data, networks, rendering, loss and the training loop."""
