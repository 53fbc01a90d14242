"""``tandem cloud serve --engine ray``: starts the Ray Serve application, and ends it on a signal.

Sessions do not come through here.  Serve's proxies take them, one proxy on every node that has a
replica, and hand each to the replica that its id names on a consistent-hash ring.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

# lines of several replicas that differ in their fields alone are not the same event
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
# nobody is told that this runs, unless its user says so
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig

from cloud.auth import read_token_file
from cloud.quotas import read_quotas
from cloud.ray_replica import Replica
from cloud.settings import CloudSettings
from shared.errors import ConfigurationError
from shared.logs import about
from shared.model_bundle import ModelBundle
from shared.port_file import port_file
from shared.transport import joined

APPLICATION = "tandem"
_OBJECT_STORE_BYTES = 128 << 20  # nothing of ours goes through it
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_SERVE_HTTP_PORT = 8000  # Serve's own; health alone is asked there

_LOG = logging.getLogger("tandem.cloud")


class RayCloud:
    """``with RayCloud(settings) as cloud``: served at ``cloud.address`` on every node that has a
    replica; leaving the block drains.

    Raises:
        ConfigurationError: a file of the settings is bad, or Ray or the replicas do not start.
    """

    def __init__(self, settings: CloudSettings) -> None:
        self.address = ""
        self.metrics_url = ""  # every replica has its own
        self._settings = settings
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        settings = self._settings
        _check_files(settings)
        with contextlib.ExitStack() as stack:
            _connect(settings)
            stack.callback(ray.shutdown)
            if serve.status().proxies:
                raise ConfigurationError(
                    "Ray Serve runs on this cluster already, and its proxies take no further "
                    "services: shut it down (serve shutdown) or use another cluster"
                )
            port = settings.port or _free_port()
            stack.callback(serve.shutdown)
            _start_proxies(settings, port)
            stack.callback(self._drain)
            _start_replicas(settings)
            self.address = joined(settings.host, port)
            stack.enter_context(port_file(settings.port_file, self.address))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Make :meth:`wait` return."""
        self._stop.set()

    def wait(self) -> None:
        """Return after SIGTERM, SIGINT or :meth:`stop`.  What one process does at SIGHUP and
        SIGUSR1 replicas do by themselves, or not at all; neither ends the cloud."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        for number in (signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, _say_ignored)
        self._stop.wait()

    def _drain(self) -> None:
        """Take no new stream and let replicas end; Serve ends those whose time is up."""
        _LOG.info("draining", extra=about(seconds=self._settings.drain_seconds))
        serve.delete(APPLICATION, _blocking=False)
        deadline = time.monotonic() + self._settings.drain_seconds + 30.0
        while serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.2)


def _say_ignored(number: int, _frame: object) -> None:
    _LOG.info("signal ignored", extra=about(signal=signal.Signals(number).name))


def _check_files(settings: CloudSettings) -> None:
    """Raise here what every replica would stumble over."""
    ModelBundle.load(settings.bundle)
    if settings.tokens:
        read_token_file(settings.tokens)
    if settings.quotas:
        read_quotas(settings.quotas)


def _connect(settings: CloudSettings) -> None:
    started_here: dict[str, Any] = {}
    if settings.ray_address is None:
        # replicas share this machine's cores however many they are said to need
        wanted = math.ceil(settings.most_replicas * settings.replica_cpus)
        started_here = {
            "num_cpus": max(os.cpu_count() or 1, wanted),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(settings.ray_address or "local", logging_level=logging.WARNING, **started_here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"Ray cannot be reached or started: {error}") from None
    gpus, found = settings.replicas * _gpus(settings), ray.cluster_resources().get("GPU", 0.0)
    if started_here and gpus > found:  # a cluster may grow; Serve waits for it
        ray.shutdown()
        raise ConfigurationError(f"replicas ask for {gpus:g} GPUs, and this machine has {found:g}")


def _start_proxies(settings: CloudSettings, port: int) -> None:
    limits = {"RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(settings.max_message_bytes)}
    try:
        serve.start(
            proxy_location="EveryNode",
            http_options={
                "host": "127.0.0.1",
                "port": _SERVE_HTTP_PORT if settings.port else _free_port(),
            },
            grpc_options={
                "port": port,
                "grpc_servicer_functions": ["cloud.ray_proxy.add_collaboration"],
            },
            # proxies are the controller's children and have its environment
            controller_options={"runtime_env": {"env_vars": limits}},
            logging_config=_logging(settings),
        )
    except (RuntimeError, TimeoutError) as error:
        raise ConfigurationError(f"Ray Serve's proxies do not start: {error}") from None


def _start_replicas(settings: CloudSettings) -> None:
    count: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.max_replicas is not None:
        autoscaling = {
            "min_replicas": settings.replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.streams_per_replica,
        }
        count = {"autoscaling_config": autoscaling}
    deployment = serve.deployment(
        Replica,
        name="Collaboration",
        ray_actor_options={"num_cpus": settings.replica_cpus, "num_gpus": _gpus(settings)},
        max_ongoing_requests=settings.max_sessions,
        max_queued_requests=settings.max_sessions,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        logging_config=_logging(settings),
        **count,
    )
    try:
        serve.run(deployment.bind(_anywhere(settings)), name=APPLICATION)
    except RuntimeError as error:
        raise ConfigurationError(
            f"the replicas do not start, and their log says why: {error}"
        ) from None


def _gpus(settings: CloudSettings) -> float:
    """For each replica."""
    if settings.replica_gpus is not None:
        return settings.replica_gpus
    return 1.0 if settings.device.startswith("cuda") else 0.0


def _logging(settings: CloudSettings) -> dict[str, Any]:
    """Serve's own lines, one a stream in the access log, are for those who debug."""
    debug = settings.log_level == "debug"
    return {
        "log_level": "INFO" if debug else "WARNING",
        "enable_access_log": debug,
        "encoding": "JSON" if settings.log_format == "json" else "TEXT",
    }


def _anywhere(settings: CloudSettings) -> CloudSettings:
    """With paths that do not depend on the folder that a replica starts in."""
    paths = {name: getattr(settings, name) for name in ("bundle", "tokens", "quotas")}
    return settings.model_copy(
        update={name: path.absolute() for name, path in paths.items() if path is not None}
    )


def _free_port() -> int:
    with socket.create_server(("", 0)) as found:
        port: int = found.getsockname()[1]
        return port
