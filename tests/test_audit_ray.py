"""A run on a Ray cluster: the same plan, the same records; nothing but loopback, and nothing left behind.

All of it is in a process of its own, with a home and a temporary folder of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from audit_kit import audit, small
from segaudit.audit.execute import on_ray
from segaudit.types import UserError

pytest.importorskip("ray")

SCRIPT = '''
import json, os, sys
from pathlib import Path

import psutil
import ray
from audit_kit import NET, assert_same, audit, parts_of, small, two_models
from ray.cluster_utils import Cluster

from segaudit.audit.execute import local, on_ray
from segaudit.audit.run import run
from segaudit.types import UserError

MARK = """
    import os, ray
    if ray.is_initialized():
        open(os.path.join(os.path.dirname(__file__), "node-" + ray.get_runtime_context().get_node_id()), "w").close()
    return Net(seed)
"""
outside = set()


def listen(*_):
    """Note every address but the loopback one that a process of ours uses."""
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            ends = [end for c in process.net_connections() for end in (c.laddr, c.raddr) if end]
        except psutil.Error:
            continue
        outside.update((process.name(), end.ip) for end in ends if not end.ip.endswith("127.0.0.1"))


def main(folder):
    node = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**node)
        spec = small(folder, 20, models=two_models(folder), transfer=True)
        (folder / "user_net.py").write_text(NET.replace("    return Net(seed)\\n", MARK))
        alone = audit(spec, folder / "alone", local(1))
        os.chdir(folder)  # after the nodes have started elsewhere: what is relative is meant from here
        told = []
        run(spec, "on-ray", on_ray(cluster.address), "ray", lambda *state: (told.append(state), listen()))
        assert_same(audit(spec, "on-ray", on_ray(cluster.address)), alone)
        assert parts_of(folder / "on-ray").keys() == parts_of(folder / "alone").keys()
        assert told == [(i, told[-1][1]) for i in range(told[-1][1] + 1)]
        (folder / "images" / "p19.png").write_bytes(b"no picture")
        try:
            audit(small(folder, seed=1), "wrong", on_ray(cluster.address))
        except UserError as error:
            said = str(error)
        state = ray.is_initialized()
    finally:
        cluster.shutdown()
    nodes = len(list(folder.glob("node-*")))
    left = [process.name() for process in psutil.Process().children(recursive=True)]
    print(json.dumps({"nodes": nodes, "said": said, "connected": state, "left": left, "outside": sorted(outside)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
'''


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: Ray puts sockets there, whose names have a limit."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_two_nodes_give_the_records_of_one_process(tmp_path: Path, home: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {
        **os.environ,
        "HOME": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray connects by the outer address
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-W", "error", str(tmp_path / "script.py"), str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            for child in (*psutil.Process(process.pid).children(recursive=True), process):
                child.kill()
            process.wait()
    assert process.returncode == 0, errors
    found = json.loads(output.splitlines()[-1])
    assert found["nodes"] == 2, "both nodes were to have a share"
    assert "p19.png: this is not a picture" in found["said"]
    assert found["connected"] is False
    assert found["left"] == []
    assert found["outside"] == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "nowhere"])
def test_an_address_where_no_cluster_answers_is_said_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UserError, match=f"--ray {address}: no cluster answers there"):
        audit(small(tmp_path), tmp_path / "out", on_ray(address))
