"""The model on Ray Serve: replicas, calls that outlive a lost replica, and an application for clusters."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from ray import serve
from ray.exceptions import RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from foldray.errors import UserError
from foldray.evaluation.provenance import find_model
from foldray.serving.app import ApiOptions, build_app
from foldray.serving.budget import parse_latency
from foldray.serving.keys import KEY, api_key
from foldray.serving.messages import Answer, Ask, ModelFacts, Refusal
from foldray.serving.names import ServedNames, check_name

APPLICATION = "foldray"
TRIES, PAUSE_SECONDS = 8, 0.5
"""How often a request is given to another replica when one is lost. Serve waits for a new one if there is none left."""
READY_SECONDS = 3.0
ONGOING = 128
"""Requests in one replica: its queue is what batches are made of."""
LOST = (RayActorError, WorkerCrashedError, DeploymentUnavailableError)


@dataclass(frozen=True)
class ReplicaOptions:
    """What a replica serves, and with what.

    Attributes:
        model: Folder or URI of a folded model.
        depths: The depths that are served; empty for all planned ones.
        latency: Budget in seconds for requests that name no depth.
        threads: Threads of torch.
        device: Device of torch.
    """

    model: str
    depths: tuple[int, ...] = ()
    latency: float | None = None
    threads: int = 1
    device: str = "cpu"


class Replica:
    """One copy of the model. It tells what is wrong with the model when it is asked, instead of failing to start."""

    def __init__(self, options: ReplicaOptions) -> None:
        import torch

        from foldray.serving.engine import Engine
        from foldray.transcription.recogniser import Recogniser

        torch.set_num_threads(options.threads)
        self._problem: tuple[str, str] | None = None
        try:
            recogniser = Recogniser(options.model, device=options.device)
            self._engine = Engine(recogniser, options.depths, options.latency)
        except UserError as error:
            self._problem = (error.where, error.problem)

    async def facts(self) -> ModelFacts | tuple[str, str]:
        """What the model can do, or what is wrong with it and where."""
        return self._problem or self._engine.facts()

    async def transcribe(self, data: bytes, ask: Ask) -> Answer | Refusal:
        """Transcribe an upload."""
        return await self._engine.transcribe(data, ask)


class ServeBackend:
    """Calls replicas. A request whose replica is lost goes to another one.

    Args:
        handle: Of the deployment of `Replica`.
    """

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._handle: Any = handle

    async def facts(self) -> ModelFacts:
        """What the model can do. Raises UserError if it does not load."""
        found = await self._handle.facts.remote()
        if isinstance(found, ModelFacts):
            return found
        raise UserError(*found)

    async def transcribe(self, data: bytes, ask: Ask) -> Answer | Refusal:
        """Transcribe an upload."""
        began = time.monotonic()
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_SECONDS)
            waited = ask.waited + time.monotonic() - began
            response = self._handle.transcribe.remote(data, Ask(ask.depth, ask.words, ask.language, waited))
            try:
                found: Answer | Refusal = await response
                return found
            except LOST:
                continue
            except BackPressureError:
                return Refusal(503, "the server is busy; try again", "overloaded")
            except asyncio.CancelledError:
                response.cancel()
                raise
        return Refusal(503, "no replica could answer; try again", "no_replica")

    async def is_ready(self) -> bool:
        """Whether a replica answers within READY_SECONDS."""
        try:
            await asyncio.wait_for(self.facts(), READY_SECONDS)
        except Exception:
            return False
        return True


def replicas(options: ReplicaOptions, count: int = 1, gpus: float = 0.0) -> serve.Application:
    """The replicas of a model as an application without HTTP.

    Args:
        options: What each serves.
        count: How many there are.
        gpus: GPUs of each.
    """
    resources = {"num_cpus": options.threads, "num_gpus": gpus}
    deployment = serve.deployment(
        name="model", num_replicas=count, ray_actor_options=resources, max_ongoing_requests=ONGOING,
        max_queued_requests=4 * ONGOING, graceful_shutdown_timeout_s=30, health_check_period_s=5,
    )(Replica)  # fmt: skip
    bound: serve.Application = deployment.bind(options)
    return bound


@serve.deployment(name="http", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=ONGOING)
@serve.ingress()
class HttpIngress:
    """The HTTP API as a deployment, behind Serve's own proxies.

    Args:
        handle: Of the replicas.
        name: The model's name.
        depth: The depth of the bare name.
        latency: The budget that chooses it instead.
    """

    def __init__(self, handle: "DeploymentHandle[Any]", name: str, depth: int | None, latency: float | None) -> None:
        self._backend = ServeBackend(handle)
        self._asked = name, depth, latency

    async def __serve_build_asgi_app__(self) -> Any:
        """Build the application once a replica tells what the model can do."""
        facts = await self._backend.facts()
        return build_app(self._backend, api_options(facts, *self._asked, api_key()))


def api_options(facts: ModelFacts, name: str, depth: int | None, latency: float | None, key: str | None) -> ApiOptions:
    """Join what the model can do with what the user asked for. Raises UserError for a depth that is not served."""
    if depth is not None and depth not in facts.depths:
        raise UserError("--depth", f"{depth} is not served; use one of {', '.join(map(str, facts.depths))}")
    usual = depth or (None if latency else facts.depths[-1])
    return ApiOptions(ServedNames(check_name(name), facts.depths, usual, facts.has_auto), facts, key)


class ApplicationArgs(BaseModel, extra="forbid", coerce_numbers_to_str=True):
    """The `args` of an application in a Serve config file.

    Attributes:
        model: As on the command line.
        store: Where runs are looked up.
        name: The model's name in requests.
        depth: The depth of the bare name; the deepest by default.
        latency: The budget that chooses it instead, such as 300ms; a plain number is seconds.
        replicas: Copies of the model.
        threads, gpus: Threads and GPUs of each.
    """

    model: str
    store: str = "./foldray-store"
    name: str = "foldray"
    depth: int | None = None
    latency: str | None = None
    replicas: int = Field(1, ge=1)
    threads: int = Field(1, ge=1)
    gpus: float = Field(0.0, ge=0)


def application(args: Mapping[str, Any]) -> serve.Application:
    """Build the application of a Serve config file (`import_path: foldray.serving.deploy:application`).

    Args:
        args: The fields of `ApplicationArgs`.

    Raises:
        UserError: A field is missing, wrong or not known, or FOLDRAY_API_KEY is not set: Serve's proxies listen on the
            network.
    """
    if api_key() is None:
        raise UserError(KEY, "is not set; without it everyone on the network could use the server")
    given = _checked(args)
    latency = parse_latency(given.latency, "latency", unit="s")
    if given.depth is not None and latency is not None:
        raise UserError("latency", "chooses the depth itself; leave out depth, or latency")
    uri = find_model(given.model, given.store).uri
    options = ReplicaOptions(uri, (), latency, given.threads, "cuda" if given.gpus else "cpu")
    ingress: Any = HttpIngress
    bound = replicas(options, given.replicas, given.gpus)
    bound_ingress: serve.Application = ingress.bind(bound, check_name(given.name), given.depth, latency)
    return bound_ingress


def _checked(args: Mapping[str, Any]) -> ApplicationArgs:
    try:
        return ApplicationArgs.model_validate(args)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        problems = {
            "missing": "is missing; set it under args",
            "extra_forbidden": f"is not known; use {', '.join(ApplicationArgs.model_fields)}",
        }
        problem = problems.get(first["type"], f"is wrong ({first['msg']}); set it anew under args")
        raise UserError(str(first["loc"][0]), problem) from None
