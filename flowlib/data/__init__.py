"""Data to learn from: toy densities with known truth, and image sets."""

from .faces import ATTRIBUTES, draw_faces
from .images import ImageSet, load
from .toys import Checkerboard, Density, Rings, Sinusoid, TwoMoons, TwoSpirals

__all__ = [
    "Density", "TwoMoons", "Sinusoid", "Checkerboard", "TwoSpirals", "Rings",
    "ImageSet", "load", "ATTRIBUTES", "draw_faces",
]  # fmt: skip
