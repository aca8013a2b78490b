"""Client of the serverless service: a model, its steps, posts and their events.

ART's train() builds the request, so that its versions may differ, and is stopped at the answer to the post. Its own polling has no time
limit, fails on events out of order and does not expose the job's id. ART writes into a scratch directory below BABYLON_RL_HOME/tmp; what a
killed process leaves there is removed by `babylon-rl cleanup`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from babylon_rl.errors import TrainingError, TrainingPaused, first_line
from babylon_rl.llm.retries import retry_after_s
from babylon_rl.models.checkpoints import RemoteCheckpoint
from babylon_rl.reporting.numbers import shortened
from babylon_rl.services import WANDB
from babylon_rl.settings import Settings
from babylon_rl.training.backends.openpipe_art import Installed, JobEvent, installed, load_art

READ_TIMEOUT_S = 60.0
POST_TIMEOUT_S = 600.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 15.0
SHORTEST_KEY = 4  # a shorter key is not replaced in messages, as it may stand in any word
UNREADABLE = (ValueError, TypeError, AttributeError, AssertionError)  # what ART's client raises for an answer of another shape

Answer = TypeVar("Answer")


class Refused(Exception):
    """A job that was not accepted: the service refused it, or was never reached.

    ``again`` is True when another try may help. ``look`` is True where the service failed or the connection was cut: a step may still
    appear.
    """

    def __init__(self, reason: str, again: bool, wait_s: float = 0.0, look: bool = False) -> None:
        super().__init__(reason)
        self.again, self.wait_s, self.look = again, wait_s, look


class Unknown(Exception):
    """A post of unknown outcome: its answer cannot be read."""


class _Posted(Exception):
    """Carries the job id, its argument, out of ART's train()."""


class ServerlessService:
    """Client of one model, an async context manager; ``beat`` may raise while it waits."""

    def __init__(self, settings: Settings, base_model: str, timeout_s: float, beat: Callable[[], None]) -> None:
        self._settings, self._base_model = settings, base_model
        self._timeout_s, self._beat = timeout_s, beat
        self._key = WANDB.key(settings)

    async def __aenter__(self) -> Self:
        art = load_art()
        self._backend = art.ServerlessBackend(api_key=self._key, base_url=self._settings.serverless_base_url)
        self._client: Any = self._backend._client
        self._client.timeout, self._client.max_retries = READ_TIMEOUT_S, 0  # _asked tries again, with a sign of life in between
        self.installed = serverless_art()
        async with AsyncExitStack() as stack:
            temporary = self._settings.home / "tmp"
            temporary.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(TemporaryDirectory(prefix="art-", dir=temporary, ignore_cleanup_errors=True))
            stack.push_async_callback(self._backend.close)
            self._model: Any = art.TrainableModel(
                **self.installed.model_arguments(self._settings.art_model_name), project=self._settings.wandb_project,
                entity=self._settings.wandb_entity, base_model=self._base_model, base_path=scratch,
            )  # fmt: skip
            # A model that is there is returned, so this may be asked again.
            await self._asked("register the model", lambda: self._model.register(self._backend))
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    @property
    def address(self) -> str:
        """The service's base URL, without a slash at its end."""
        return str(self._client.base_url).rstrip("/")

    @property
    def model_name(self) -> str:
        return f"{self._model.entity}/{self._model.project}/{self._settings.art_model_name}"

    def remote(self, step: int, job_id: str | None) -> RemoteCheckpoint:
        return RemoteCheckpoint(
            service=self.address, model=self.model_name, step=step, artifact=f"{self.model_name}:step{step}", job_id=job_id,
            inference_name=str(self._model.get_inference_name(step=step)),
            inference_url=str(self._model.inference_base_url or WANDB.base_url),
        )  # fmt: skip

    async def newest(self) -> tuple[int, dict[str, Any]]:
        """Return the highest step that the service lists, 0 for the base, and its metrics."""

        async def ask() -> tuple[int, dict[str, Any]]:
            async for checkpoint in self._client.models.checkpoints.list(limit=1, order="desc", model_id=self._model.id):
                return int(checkpoint.step), dict(checkpoint.metrics or {})
            return 0, {}

        return await self._asked("list the checkpoints", ask)

    async def steps(self) -> list[int]:

        async def ask() -> list[int]:
            return [int(checkpoint.step) async for checkpoint in self._client.models.checkpoints.list(model_id=self._model.id)]

        return await self._asked("list the checkpoints", ask)

    async def delete(self, steps: Sequence[int]) -> None:
        """Delete some steps; missing ones are ignored."""
        await self._asked("delete steps", lambda: self._client.models.checkpoints.delete(model_id=self._model.id, steps=list(steps)))

    async def events(self, job_id: str) -> list[JobEvent]:

        async def ask() -> list[JobEvent]:
            listed = self._client.training_jobs.events.list(training_job_id=job_id)
            return [JobEvent(str(event.id), str(event.type), dict(event.data or {})) async for event in listed]

        return await self._asked("list a job's events", ask)

    async def post(self, groups: Sequence[Any], arguments: dict[str, Any], may_send: Callable[[], None]) -> str:
        """Post one job through ART's train() and return its id.

        ``may_send`` is called right before the request goes out, after it is built, and raises when it must not.

        Raises:
            Refused: it was not accepted.
            Unknown: it may have been accepted.
            Exception: anything else, from ``may_send`` too, came before the request had left.
        """
        # Set when the request is handed to the network: from then on a failure may mean a job that was accepted.
        jobs, sent = self._client.training_jobs, False
        create, prepare = jobs.create, self._client._prepare_request

        # Replaces the client's hook before sending: check permission, then record that the request leaves.
        async def send(request: Any) -> None:
            nonlocal sent
            await prepare(request)
            may_send()
            sent = True

        async def create_and_leave(**request: Any) -> None:
            self._client._prepare_request = send
            job_id = getattr(await create(**request), "id", None)
            if not isinstance(job_id, str) or not job_id:
                raise Unknown("the answer to the post held no job id")
            raise _Posted(job_id)

        import openai

        jobs.create, self._client.timeout = create_and_leave, POST_TIMEOUT_S
        try:
            await self._backend.train(self._model, list(groups), **arguments)
        except _Posted as posted:
            return str(posted.args[0])
        except openai.APIError as failed:
            # Before `sent` every failure is a refusal; after it the outcome may be unknown.
            if not sent:  # ART asked for something else first
                raise Refused(describe(failed, self._key), again=_may_pass(failed)) from None
            raise _of_post(failed, self._key) from None
        except UNREADABLE as failed:
            if sent:
                raise Unknown(f"the answer to the post cannot be read ({type(failed).__name__})") from failed
            raise Refused(f"ART's train() did not build the request: {describe(failed, self._key)}.", again=False) from failed
        except Exception as failed:  # any error of ART or its client: once the request has left, its outcome is unknown
            if sent and not isinstance(failed, Unknown):
                raise Unknown(f"the post broke off ({type(failed).__name__})") from failed
            raise
        finally:
            jobs.create, self._client._prepare_request, self._client.timeout = create, prepare, READ_TIMEOUT_S
        # It never called create(), so it may have posted in another way.
        raise Unknown("ART's train() returned without posting a job that could be seen")

    async def _asked(self, what: str, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat a request until the service answers, at most ``timeout_s`` seconds."""
        import openai

        waited_s, wait_s = 0.0, FIRST_WAIT_S
        while True:
            try:
                return await ask()
            except (openai.APIError, *UNREADABLE) as failed:
                if not _may_pass(failed):
                    cure = _cure(getattr(failed, "status_code", 0))
                    raise TrainingError(f"The training service refused to {what}: {describe(failed, self._key)}.{cure}") from None
                if waited_s >= self._timeout_s:
                    raise TrainingPaused(
                        f"The training service does not answer ({what}: {describe(failed, self._key)}). What was posted goes on there; "
                        "the batch goes on with its next run, `babylon-rl train`."
                    ) from None
            await asyncio.sleep(wait_s)
            self._beat()
            waited_s, wait_s = waited_s + wait_s, min(LONGEST_WAIT_S, wait_s * 2)


def serverless_art() -> Installed:
    art = load_art()
    return installed(art.ServerlessBackend.train, art.TrainableModel.__init__)


def describe(failed: Exception, key: str = "") -> str:
    """Describe a failure in a few words, without the key, which some services repeat."""
    status, body = getattr(failed, "status_code", None), getattr(failed, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    if status is None:
        text = shortened(first_line(failed.__cause__ or failed), 200)
    else:
        text = f"status {status}" + (f", {shortened(str(message), 200)}" if message else "")
    return text.replace(key, "(the key)") if len(key) >= SHORTEST_KEY else text


def _of_post(failed: Exception, key: str) -> Refused | Unknown:
    import httpx
    import openai

    if isinstance(failed, openai.APIStatusError):
        status, wait_s = failed.status_code, retry_after_s(failed.response.headers.get("retry-after"), datetime.now(UTC)) or 0.0
        if status in (408, 409) or status >= 500:
            return Refused(describe(failed, key), True, wait_s, look=True)  # an error may come after acceptance
        return Refused(f"{describe(failed, key)}.{_cure(status)}", status in (425, 429), wait_s)
    # No connection was made, so nothing can have been accepted: posted again without waiting for a step.
    if isinstance(failed.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return Refused(describe(failed), True)
    # The connection was there and broke: the request may have arrived.
    if isinstance(failed, openai.APIConnectionError):
        return Refused(describe(failed), True, look=True)
    return Unknown(describe(failed))


def _may_pass(failed: Exception) -> bool:
    status = getattr(failed, "status_code", None)
    # Of the client's errors only these four pass by themselves: a time limit, a conflict, too early, too many.
    return status is None or not 400 <= status < 500 or status in (408, 409, 425, 429)


def _cure(status: int) -> str:
    if status in (401, 403):
        return " Check WANDB_API_KEY, WANDB_ENTITY and WANDB_PROJECT."
    return " Check SERVERLESS_BASE_URL." if status == 404 else ""
