"""Networks: pure PyTorch, one folder per model."""
