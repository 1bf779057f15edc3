"""Generators and discriminators. Layers take explicit arguments; networks are built from a Config."""
