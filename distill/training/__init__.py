"""Training a student: the Lightning module, its optimiser and callbacks."""
