"""The stage `train` as a job: `ray job submit --working-dir . -- python -m pipelines.train …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
