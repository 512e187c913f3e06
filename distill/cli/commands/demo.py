"""Serve a student's web page on this machine.

The page is one that export wrote. It is served on the loopback address only, until Ctrl-C.

Examples:
  python -m distill export ckpt=runs/fit/student.safetensors page=runs/page
  python -m distill demo page=runs/page
"""

import webbrowser

from omegaconf import DictConfig

from distill.core.errors import ConfigError
from distill.core.numbers import is_whole
from distill.export.serve import ADDRESS, page_server


def run(cfg: DictConfig) -> None:
    """Prints the page's address and serves it until it is interrupted.

    Raises:
        ConfigError: when ``port`` is no whole number, and what :func:`distill.export.serve.page_server` raises.
    """
    if not is_whole(cfg.port):
        raise ConfigError(f"Expected port to be a whole number but got {cfg.port!r}.")
    with page_server(cfg.page, cfg.port) as server:
        address = f"http://{ADDRESS}:{server.server_port}/"
        print(f"{cfg.page}: {address} (Ctrl-C ends it)", flush=True)
        if cfg.open:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")
