"""Hyperparameter search on Ray Tune: trials are ordinary runs, suggested by Optuna and stopped early by ASHA."""
