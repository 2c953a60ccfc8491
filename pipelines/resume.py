"""The stage `resume` as a job: `ray job submit --working-dir . -- python -m pipelines.resume …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["resume", *sys.argv[1:]])
