"""From what kernels sum over pairs to the gradients of captured tensors: the same bits at any number of threads."""
