"""Run a program as on a ZeroGPU Space: `python -m tests.e2e.lender app.py --device cpu`.

The `spaces` package is the real one, with its forks, queues and calls to the lender, which answers on loopback. What it
lends is this processor: of the package, the two functions that CUDA does the work of are left out.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Lender(BaseHTTPRequestHandler):
    """Lends one GPU to whoever asks, and says so in the log. All but the first go on with that one's process."""

    lent = 0

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        answer = {}
        if url.path == "/schedule":
            [seconds] = parse_qs(url.query)["durationSeconds"]
            answer = {"idle": Lender.lent > 0, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": str(Lender.lent)}
            Lender.lent += 1
            print(f"lent for {seconds} s", file=sys.stderr, flush=True)
        elif url.path == "/release":
            print("given back", file=sys.stderr, flush=True)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def main() -> None:
    """Lend, and run the program."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_address[1]}",
    }
    import torch

    # What the package asks a build for CUDA when it is imported.
    torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", None, bool

    import spaces.zero.torch

    spaces.zero.torch.init = lambda uuid: None
    spaces.zero.torch.move = lambda callback=None: None

    import ui.runs.cost

    ui.runs.cost.QUICK = 0  # the bundled model would be quick enough to need no GPU
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
