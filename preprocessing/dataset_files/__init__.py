"""Data set files: packing, checking, contact sheets."""
