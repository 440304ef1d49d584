"""Report the experiment with networks that share no start."""
