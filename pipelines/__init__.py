"""Entry points for Ray jobs, one for each stage, with the arguments of `foldray STAGE`."""
