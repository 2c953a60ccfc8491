"""The stage `push` as a job: `ray job submit --working-dir . -- python -m pipelines.push …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["push", *sys.argv[1:]])
