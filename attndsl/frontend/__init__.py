"""From what users write, Python functions or text, to a typed `Variant`."""
