"""Two network namespaces, one for servers and one for workers, and a link between them that can be cut.

A second link leads from here to the server's, for the drill's own calls. There is no default route in either namespace:
nothing that happens in them can reach anything else.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess

from drills.loaded_study import NotHere

_numbers = itertools.count()


class Namespaces:
    def __init__(self) -> None:
        """Raise NotHere where they cannot be made."""
        if os.geteuid() != 0:
            raise NotHere("network namespaces can be made by root only; a proxy that drops runs in any case")
        for program in ("ip", "iptables"):
            if shutil.which(program) is None:
                raise NotHere(f"{program} is not installed; a proxy that drops runs in any case")
        self.lost = 0
        # Of the range for tests between networks (RFC 2544), which is nobody's; others may run this drill beside us.
        network = 2 * (os.getpid() % 120)
        self.server_from_workers, self._worker = f"198.18.{network}.1", f"198.18.{network}.2"
        self.server_from_here, self._here = f"198.18.{network + 1}.1", f"198.18.{network + 1}.2"
        mark = f"{os.getpid() % 100_000}{next(_numbers)}"
        self._servers, self._workers, self._link = f"hpo-s{mark}", f"hpo-w{mark}", f"hpo{mark}"
        try:
            self._make()
        except subprocess.CalledProcessError as error:
            self.close()
            raise NotHere(f"network namespaces cannot be made here: {error.stderr.strip()}") from None

    @property
    def inside_servers(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._servers)

    @property
    def inside_workers(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._workers)

    def cut(self, both_ways: bool) -> None:
        """From now on packets vanish in silence: to the workers, and from them too if both ways."""
        _run(*self.inside_servers, "iptables", "-A", "OUTPUT", "-o", "data", "-j", "DROP")
        if both_ways:
            _run(*self.inside_servers, "iptables", "-A", "INPUT", "-i", "data", "-j", "DROP")

    def join(self) -> None:
        counters = _run(*self.inside_servers, "iptables", "-L", "-v", "-n", "-x")
        self.lost += sum(int(number) for number in re.findall(r"^ *(\d+) +\d+ DROP", counters, re.MULTILINE))
        _run(*self.inside_servers, "iptables", "-F")

    def close(self) -> None:
        """The links go with the namespaces."""
        for namespace in (self._servers, self._workers):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)

    def _make(self) -> None:
        for namespace in (self._servers, self._workers):
            _run("ip", "netns", "add", namespace)
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
        servers, workers = ("netns", self._servers), ("netns", self._workers)
        _run("ip", "link", "add", "data", *servers, "type", "veth", "peer", "name", "data", *workers)
        _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "calls", *servers)
        for namespace, link, address in (
            (self._servers, "data", self.server_from_workers),
            (self._workers, "data", self._worker),
            (self._servers, "calls", self.server_from_here),
        ):
            _run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", link)
            _run("ip", "-n", namespace, "link", "set", link, "up")
        _run("ip", "address", "add", f"{self._here}/30", "dev", self._link)
        _run("ip", "link", "set", self._link, "up")


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
