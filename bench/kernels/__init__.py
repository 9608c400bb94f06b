"""The Triton kernels beside plain torch and torch.compile."""
