"""What is known of the kernels without a GPU: their compilation and models of their traffic."""
