"""What is kept of runs: tables, checkpoints, run directories, trackers, progress."""
