"""The stage `prepare` as a job: `ray job submit --working-dir . -- python -m pipelines.prepare …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
