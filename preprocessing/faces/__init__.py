"""Faces and 468-point face meshes in images, with the networks of MediaPipe (data/NOTICE)."""
