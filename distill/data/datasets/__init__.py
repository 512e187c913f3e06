"""Data sets of image pairs, one benchmark a file, and the procedural world."""
