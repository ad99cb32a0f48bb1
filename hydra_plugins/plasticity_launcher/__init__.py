"""The launcher of sweeps, as a plugin of Hydra."""
