"""A variant as one file that needs torch and triton alone: one module for each part of the file."""
