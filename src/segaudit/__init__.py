"""Audit image segmentation models: what fools them, what a defense buys, what they give away."""

__version__ = "0.1.0"
