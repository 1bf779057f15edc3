"""Metrics of generated videos: FVD, FID, KID, identity, Chamfer distance, warping error, motion, geometry."""
