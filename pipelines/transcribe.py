"""The stage `transcribe` as a job: `ray job submit --working-dir . -- python -m pipelines.transcribe …`."""

import sys

from foldray.cli.main import main

if __name__ == "__main__":
    main(["transcribe", *sys.argv[1:]])
