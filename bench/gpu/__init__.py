"""The first day on a GPU: values, budgets, launches, kernels, memory and times beside the floor; `bash bench/gpu.sh`."""
