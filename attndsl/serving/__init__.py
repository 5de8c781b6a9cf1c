"""The shapes serving has: sequences laid end to end without padding, and keys kept in pages."""
