"""Variants everyone needs, each written in the language itself."""
