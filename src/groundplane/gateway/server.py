"""Listens, keeps the coarse clock, and drains: what happens in a gateway apart from requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from groundplane.errors import IntegrityFailure
from groundplane.gateway.client_side import ClientConnection
from groundplane.gateway.counting.counters import Counters
from groundplane.gateway.state import GatewayState, Options
from groundplane.gateway.telemetry.sighting import TelemetryOptions
from groundplane.gateway.wal import LOG_WAIT_S, Closed, WriteAheadLog

_TICK_S = 0.05
_SWEEP_TICKS = 4
_SPACE_TICKS = 20
_BACKLOG = 2048
_LAST_WORDS_S = 1.0


class Gateway:
    """One gateway process's worth of serving, on the running loop."""

    def __init__(
        self,
        *,
        snapshot_path: Path,
        log: WriteAheadLog,
        gateway_id: str,
        options: Options,
        counters: Counters | None = None,
        metrics_folder: Path | None = None,
        keys_folder: Path | None = None,
        telemetry: TelemetryOptions | None = None,
    ) -> None:
        self._log = log
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        # One thread, so that syncs happen in order; the loop itself never waits for the disk.
        self._syncer = ThreadPoolExecutor(1, "usage-log-sync")
        self._sync: Future[None] | None = None
        self._looking: asyncio.Future[list[Closed]] | None = None
        self.state = GatewayState(
            options=options,
            snapshot_path=snapshot_path,
            log=log,
            gateway_id=gateway_id,
            counters=counters,
            metrics_folder=metrics_folder,
            keys_folder=keys_folder,
            telemetry=telemetry,
        )

    async def start(self, host: str, port: int, listener: socket.socket | None = None) -> int:
        """Binds, recovers the log, reads the snapshot, listens; returns the port. Raises GroundError or OSError.

        A `listener` is a socket that listens already, kept by whoever starts workers: connections wait in it while a
        worker is away.
        """
        loop = asyncio.get_running_loop()

        def connection() -> ClientConnection:
            return ClientConnection(self.state)

        # Binding first tells a taken port apart from a log in use; nothing is accepted before the log is recovered.
        if listener is not None:
            self._server = await loop.create_server(connection, sock=listener, backlog=_BACKLOG, start_serving=False)
        else:
            self._server = await loop.create_server(connection, host, port, backlog=_BACKLOG, start_serving=False)
        try:
            recovered = self._log.open(wait_s=LOG_WAIT_S)
        except BaseException:
            self._server.close()
            self._syncer.shutdown()
            raise
        self.state.recover(recovered.settled)
        self._log.check_space()
        self.state.poll_snapshot(wait=True)
        self.state.telemetry.tick()
        bound: int = self._server.sockets[0].getsockname()[1]
        await self._server.start_serving()
        self._tick()
        return bound

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        state = self.state
        self._timer = loop.call_later(_TICK_S, self._tick)
        self._ticks += 1
        state.now_s = loop.time()
        self._sync_log()
        state.flushing.begin()
        state.metrics.say_some()
        if self._ticks % _SWEEP_TICKS == 0:
            state.telemetry.tick()
            state.poll_snapshot()
            for client in list(state.clients):
                client.sweep(state.now_s)
            for upstream in state.upstreams:
                upstream.sweep(state.now_s)
        if self._ticks % _SPACE_TICKS == 0:
            self._log.check_space()
            state.publishing.begin()
            self._look_for_gone()

    def _look_for_gone(self) -> None:
        """Closes the logs of gateways that nobody will start again, and lets go of what they had spent."""
        if self._looking is None or self._looking.done():
            loop, workers = asyncio.get_running_loop(), self.state.options.workers
            self._looking = loop.run_in_executor(None, self._log.gone, workers)
            self._looking.add_done_callback(self._found_gone)

    def _found_gone(self, looked: asyncio.Future[list[Closed]]) -> None:
        error = looked.exception()
        if isinstance(error, (OSError, IntegrityFailure)):
            return  # another's log can't be read: who reads it for the ledger says so
        if not self.state.draining:
            self.state.let_go(looked.result())

    def _sync_log(self) -> None:
        if self._sync is not None:
            if not self._sync.done():
                return
            error = self._sync.exception()
            self._sync = None
            if error is not None:
                self._log.trouble = f"the usage log can't be synced: {error}"
        work = self._log.sync_work()
        if work is not None:
            self._sync = self._syncer.submit(work)

    async def stop(self) -> None:
        """Stops accepting, lets requests in flight finish (bounded), then flushes the log."""
        state = self.state
        loop = asyncio.get_running_loop()
        state.draining = True
        if self._server is not None:
            self._server.close()
        for client in list(state.clients):
            client.close_when_idle()
        try:
            await asyncio.wait_for(state.no_clients.wait(), state.options.drain_s)
        except TimeoutError:
            for client in list(state.clients):
                client.stop_now()
            with contextlib.suppress(TimeoutError):  # who does not read what it is told
                await asyncio.wait_for(state.no_clients.wait(), _LAST_WORDS_S)
            for client in list(state.clients):
                client.abort()
            await state.no_clients.wait()
        for upstream in state.upstreams:
            await upstream.close()
        if self._timer is not None:
            self._timer.cancel()
        await loop.run_in_executor(None, state.telemetry.close)
        await loop.run_in_executor(None, self._syncer.shutdown)
        state.flushing.finish()
        state.counters.close()
        self._log.close()  # last: from then on others may let go of what is held here
        state.publishing.finish()
        state.files.close()
