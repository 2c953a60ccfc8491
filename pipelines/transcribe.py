"""The stage `transcribe` as a job: `ray job submit --working-dir . -- python -m pipelines.transcribe MODEL CORPUS …`.

The format is parquet unless another is given: shards that resume, written by the whole cluster.
"""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["transcribe", "--format", "parquet", *sys.argv[1:]])
