"""The checks of `foldray doctor` as a job: `ray job submit --working-dir . -- python -m pipelines.doctor …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
