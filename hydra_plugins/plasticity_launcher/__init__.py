"""Makes the launcher of sweeps known to Hydra."""
