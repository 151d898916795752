"""What is compared: transformers alone, the engine in this process, the daemon over gRPC.

All of them run the same prompts on the same weights with the same number of threads. None can
reuse anything: every prompt is sent to each of them once.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from lensd_client import Client
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device import Devices, set_cpu_threads
from lensd_server.engine.events import AnalysisRequest, Found
from lensd_server.engine.executor import LocalExecutor
from lensd_server.engine.models.conversion import ConversionCache
from lensd_server.engine.models.digests import Digests
from lensd_server.engine.models.loading import Loader
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.models.sources import Sources
from lensd_server.engine.storage import Storage
from lensd_server.plugins import discover
from lensd_server.settings import EMBEDDED_NAME, EMBEDDED_SOURCE, ModelSettings, Settings

#: What is asked of the engine and the daemon: the whole split by head, at the last position.
UNIT = "head"


def converted_weights() -> Path:
    """Folder of the embedded model's dense weights, converted now if that has not happened yet."""
    cache = Settings().server.cache_dir
    conversions = ConversionCache(cache / "converted", Digests(cache / "digests"))
    return conversions.converted(Sources().fetch(EMBEDDED_SOURCE, cache))


class BareForward:
    """The model as transformers runs it: one forward pass, logits of the last position only.

    That is the least anybody needs to see a prediction; tokenising is not even counted.
    """

    def __init__(self, folder: Path) -> None:
        set_cpu_threads()
        transformers.utils.logging.disable_progress_bar()
        #: Where a daemon with default settings puts the model, too.
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        module: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.module: Any = module.to(self.device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._ids: dict[str, torch.Tensor] = {}

    def prepare(self, prompts: Sequence[str]) -> None:
        """Tokenises ahead of the clock."""
        for prompt in prompts:
            ids = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
            self._ids[prompt] = ids.to(self.device)

    def tokens(self, prompt: str) -> int:
        """Length of a prompt."""
        self.prepare([prompt])
        return self._ids[prompt].shape[1]

    def run(self, prompt: str) -> None:
        """One forward pass."""
        self._forward(self._ids[prompt])

    def run_all(self, prompts: Sequence[str]) -> None:
        """One forward pass after another."""
        for prompt in prompts:
            self.run(prompt)

    def run_batch(self, prompts: Sequence[str]) -> None:
        """All in one forward pass; they have the same length."""
        self._forward(torch.cat([self._ids[p] for p in prompts]))

    def run_padded(self, prompts: Sequence[str]) -> None:
        """All in one forward pass, padded on the right to the longest of them."""
        rows = [self._ids[p][0] for p in prompts]
        self._forward(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))

    def _forward(self, ids: torch.Tensor) -> None:
        with torch.inference_mode():
            self.module(ids, use_cache=False, logits_to_keep=1)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Engine:
    """The daemon's engine in this process, without gRPC."""

    def __init__(self) -> None:
        settings = Settings()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        models = {EMBEDDED_NAME: ModelSettings(source=EMBEDDED_SOURCE)}
        turn = Turn()
        loader = Loader(settings.server.cache_dir)
        self._residency = Residency(models, loader, settings.limits, devices=Devices(turn))
        self._executor = LocalExecutor(
            discover(),
            self._residency,
            settings.limits,
            storage=Storage.under(settings.server.state_dir, settings.limits),
            cpu_turn=turn,
        )
        self._wait(self._load())

    @property
    def module(self) -> Any:
        """The resident transformers module."""
        resident = self._residency.resident(EMBEDDED_NAME)
        assert resident is not None
        return resident.loaded.model.module

    def run(self, prompt: str) -> None:
        """One analysis."""
        self._wait(self._analyze(prompt))

    def run_all(self, prompts: Sequence[str], clients: int) -> None:
        """All prompts, ``clients`` analyses at a time."""
        self._wait(self._run_all(list(prompts), clients))

    def close(self) -> None:
        """Frees the model and ends the loop."""
        self._residency.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _load(self) -> None:
        async for _ in self._residency.load(EMBEDDED_NAME):
            pass

    async def _analyze(self, prompt: str) -> None:
        params = {"prompt": prompt, "unit": UNIT}
        request = AnalysisRequest(f"bench-{id(prompt)}", "dla", EMBEDDED_NAME, params)
        found = [event async for event in self._executor.run(request) if isinstance(event, Found)]
        assert found, "no result"

    async def _run_all(self, prompts: list[str], clients: int) -> None:
        async def client() -> None:
            while prompts:
                await self._analyze(prompts.pop())

        await asyncio.gather(*(client() for _ in range(clients)))


class OverGrpc:
    """Clients of a running daemon, each with a connection of its own; ``how`` are settings of theirs."""

    def __init__(self, target: str, clients: int, **how: Any) -> None:
        self._clients = [Client(target, **how) for _ in range(clients)]
        self._threads = ThreadPoolExecutor(clients)

    def run(self, prompt: str) -> None:
        """One analysis by the first client."""
        _analyze(self._clients[0], prompt)

    def run_all(self, prompts: Sequence[str], clients: int) -> None:
        """All prompts, by the first ``clients`` at once."""
        waiting: SimpleQueue[str] = SimpleQueue()
        for prompt in prompts:
            waiting.put(prompt)

        def work(client: Client) -> None:
            while True:
                try:
                    prompt = waiting.get_nowait()
                except Empty:
                    return
                _analyze(client, prompt)

        for done in [self._threads.submit(work, client) for client in self._clients[:clients]]:
            done.result()

    def close(self) -> None:
        """Closes the connections."""
        self._threads.shutdown()
        for client in self._clients:
            client.close()


def _analyze(client: Client, prompt: str) -> None:
    run = client.analyze("dla", EMBEDDED_NAME, prompt=prompt, unit=UNIT).finish()
    assert run.completed is not None
