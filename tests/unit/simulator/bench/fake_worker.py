"""A worker that knows nothing: ``python -m tests.unit.simulator.bench.fake_worker HOW``.

It answers with the prompt's tokens, or what is forced; ``HOW`` is how it goes wrong.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from simulator.bench.worker_process import Reply, claim_stdout, serve


def answer(request: Reply) -> Reply:
    how = sys.argv[1]
    print("libraries print what they like")
    subprocess.run(["echo", "and so do their children"], check=True)
    if how == "dies":
        print("out of ideas", file=sys.stderr)
        sys.exit(3)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGILL)
    if how == "silent":
        os._exit(5)
    if how == "mute":
        time.sleep(600)
    if how == "error":
        return {"error": "no ideas"}
    tokens = request["forced_ids"] or request["prompt_ids"]
    return {"token_ids": tokens, "seconds": 0.5, "first_token_seconds": 0.25}


if __name__ == "__main__":
    claim_stdout()
    serve({"threads": 3, "pid": os.getpid()}, answer)
