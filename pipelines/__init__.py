"""Entry points for Ray jobs, one a stage; the same arguments as `foldray STAGE`."""
