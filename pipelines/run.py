"""The stage `run` as a job: `ray job submit --working-dir . -- python -m pipelines.run …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["run", *sys.argv[1:]])
