"""The stage `evaluate` as a job: `ray job submit --working-dir . -- python -m pipelines.evaluate …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
