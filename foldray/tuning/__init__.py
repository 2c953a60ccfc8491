"""Searching for the best fold on Ray Tune: trials are ordinary runs, chosen by Optuna, stopped early by ASHA."""
