"""Parts of the bench verb."""
