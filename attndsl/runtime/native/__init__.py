"""Kernels for CPUs: C++ text to machine code on disk, loaded with ctypes and called with a checked call."""
