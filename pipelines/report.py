"""The stage `report` as a job: `ray job submit --working-dir . -- python -m pipelines.report …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
