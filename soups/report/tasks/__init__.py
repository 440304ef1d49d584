"""Report the experiment with many tasks."""
