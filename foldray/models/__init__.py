"""Stock models in, folded models out: fold, unroll, families, checkpoints, costs."""
