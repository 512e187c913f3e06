"""Changes of images with known correspondence: augmentation and warps."""
