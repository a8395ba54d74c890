"""The one loop, optimisers, schedules, checkpoints, monitors, the run folder."""
