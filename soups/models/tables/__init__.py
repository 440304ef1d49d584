"""Say which tensors of published files are which weights: one table for each project's names."""
