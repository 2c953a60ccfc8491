"""The stage `tune` as a job: `ray job submit --working-dir . -- python -m pipelines.tune …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])
