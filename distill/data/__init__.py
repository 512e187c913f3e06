"""Image pairs: data sets, reading, pairing, downloads, samplers and the Lightning data module."""
