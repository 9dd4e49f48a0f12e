"""Starts a peer's server: `python peer_servers.py grpc|vizier DATABASE PORT FOLDER`; prints a line when it is ready.

FOLDER: where the peer's packages are, when they are not installed beside this project's; it is looked into last.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable


def grpc(database: str, port: int) -> Callable[[], object]:
    """Optuna's storage proxy, on a storage with a cache, as its documentation asks for."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

    def run() -> None:
        optuna.storages.run_grpc_proxy_server(optuna.storages.get_storage(database), host="127.0.0.1", port=port)

    running = threading.Thread(target=run)
    running.start()
    optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port).wait_server_ready(60)
    return running.join


def vizier(database: str, port: int) -> Callable[[], object]:
    """OSS Vizier with its algorithms in the same process, which is its default."""
    from vizier.service import servers

    server = servers.DefaultVizierServer(host="127.0.0.1", port=port, database_url=database)
    for_ever = threading.Event()
    return lambda: (for_ever.wait(), server)  # it ends when nobody refers to it any longer


def main() -> None:
    kind, database, port, folder = sys.argv[1:]
    sys.path.append(folder)
    wait = {"grpc": grpc, "vizier": vizier}[kind](database, int(port))
    print("ready", flush=True)
    wait()


if __name__ == "__main__":
    main()
