"""Native CPU kernels side by side with what torch offers, each in one process on the same tensors."""
