"""A loaded edge: tokenizer, model and cloud endpoint, from which generations are started."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from tokenizers import Tokenizer

from edge.chat_encoding import ChatEncoder
from edge.cloud_channel import Channels, CloudEndpoint
from edge.conversations import Conversations
from edge.exit_model import ExitModel
from edge.generation_options import GenerationOptions
from edge.generation_result import GenerationResult
from edge.generation_run import Generation
from edge.link_monitor import LinkMonitor
from edge.plan import Plan
from edge.timeline import Timeline
from shared.chat import ChatTemplate, Message
from shared.clock import Clock, monotonic
from shared.errors import BundleError
from shared.model_bundle import ModelBundle, Precision


class EdgeEngine:
    """One bundle on this device.  The model is loaded when a generation first needs it."""

    def __init__(
        self,
        bundle: ModelBundle,
        precision: Precision,
        *,
        threads: int | None = None,
        endpoint: CloudEndpoint | None = None,
        clock: Clock = monotonic,
    ) -> None:
        self.bundle = bundle
        self.endpoint = endpoint
        self.clock = clock
        self.tokenizer = _load_tokenizer(bundle)
        self.stop_token_ids = frozenset(bundle.manifest.tokenizer.stop_token_ids)
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="edge-model")
        self._precision = precision
        self._threads = threads
        template = ChatTemplate(bundle.manifest.tokenizer.chat_template)
        positions = bundle.manifest.architecture.max_positions
        self._chat = ChatEncoder(self.tokenizer, template, positions)
        self._model: ExitModel | None = None
        self.monitor = LinkMonitor(clock)
        self.last_plan: Plan | None = None  # of auto mode
        self.channels: Channels | None = None
        self.conversations: Conversations | None = None  # without, every answer begins anew

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep the connection to the cloud for all generations within the block: each answer then
        begins a few round trips sooner.  Without, each makes a connection of its own."""
        assert self.endpoint is not None
        self.channels = Channels(self.endpoint)
        try:
            yield
        finally:
            channels, self.channels = self.channels, None
            await channels.close()

    def load_model(self) -> ExitModel:
        """The model, loaded at the first call."""
        if self._model is None:
            self._model = ExitModel(self.bundle, self._precision, threads=self._threads)
        return self._model

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the assistant's words begin; text of messages
        never becomes a special token."""
        return self._chat.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a text as it is."""
        return self._chat.encode_text(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer's tokens, stop tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def generation(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        timeline: Timeline | None = None,
    ) -> Generation:
        """Prepare a generation; raises :class:`ConfigurationError` where it cannot work."""
        return Generation(self, tuple(prompt_ids), options, timeline)

    async def generate(
        self,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        timeline: Timeline | None = None,
    ) -> GenerationResult:
        """Run a generation to its end; ``timeline`` is told what happens when."""
        generation = self.generation(prompt_ids, options, timeline)
        async for _ in generation.run():
            pass
        return generation.result()

    def close(self) -> None:
        """Stop the worker thread."""
        self.worker.shutdown(wait=True, cancel_futures=True)


def _load_tokenizer(bundle: ModelBundle) -> Tokenizer:
    path = bundle.path(bundle.manifest.tokenizer.file)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise BundleError(f"{path} cannot be read: {error}; run `tandem prepare`") from None
