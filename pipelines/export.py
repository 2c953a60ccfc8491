"""The stage `export` as a job: `ray job submit --working-dir . -- python -m pipelines.export …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
