"""What is known of the kernels without a GPU and measured with one: compilation, models of traffic, timing."""
