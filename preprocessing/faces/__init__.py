"""Faces and 468-point face meshes in pictures, with the networks of MediaPipe (data/NOTICE) run by torch."""
