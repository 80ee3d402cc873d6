"""Whole-slide images: reading, tissue, annotations, stains, tiles and heat maps."""
