"""Procedural talking heads: the embedded data set, with exact cameras, depth, normals and masks."""
