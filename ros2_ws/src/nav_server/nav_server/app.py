"""The HTTP API as an ASGI application: `create_app(service)`; OpenAPI's page is at /docs.

Nothing here works with the model: handlers hand over to its thread and await, or wait in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from nav_agent import toolset
from nav_common.data import WatchEvent
from nav_server import access, bodies
from nav_server.actions import Action, allowed_tools
from nav_server.bodies import DecideBody, FrameBody, FrameFields, WatchBody
from nav_server.metrics import Metrics
from nav_server.page import PATH as PAGE_PATH
from nav_server.problems import Problem
from nav_server.service import Health, HealthStatus, Service
from nav_server.sessions import Session
from nav_server.watches import StandingWatch
from vlm_perception.request_queue import Taken
from vlm_perception.tickets import Ticket

T = TypeVar("T")

APPEND_LIMIT_S = 25.0
"""For frames to be taken in: below the 30 s that the four-action client waits."""
_DROP_IDLE_EVERY_S = 5.0
_KEEP_ALIVE_S = 10.0
"""Between the comments of a stream of events in which nothing happens: proxies close what is silent."""


class Appended(BaseModel):
    """What became of a frame. cache_len: tokens in the client's memory; chunks: encoded since it began."""

    status: str = Field(examples=["ok"])
    message: str
    cache_len: int
    chunks: int


class DecisionBody(BaseModel):
    """What to do. `action` is the coarse reading of `tool`, whose arguments say how far; ttft in seconds."""

    action: Action
    reasoning: str
    ttft: float
    cache_len: int
    chunks_encoded: int
    tool: str = Field(json_schema_extra={"enum": list(toolset.BY_NAME)})
    arguments: dict[str, int | str]


class Vram(BaseModel):
    """Of the GPU, in GB; zeros without one."""

    allocated_gb: float
    reserved_gb: float


class Status(BaseModel):
    """The engine, with the caller's stream if it has one, and the GPU's memory."""

    engine: dict[str, Any]
    vram: Vram


class WatchAnswer(BaseModel):
    """A standing question; `holds`: whether it is true now."""

    id: int
    question: str
    hover: bool
    holds: bool


class Done(BaseModel):
    status: str = Field(examples=["ok"])
    message: str


class HealthAnswer(BaseModel):
    """`latency_ms`: of a probe of 8 tokens."""

    status: HealthStatus
    latency_ms: float
    model_loaded: bool
    message: str


class ErrorBody(BaseModel):
    """Why a request was not served."""

    detail: str


def create_app(service: Service) -> FastAPI:
    """The application. Pages may be added to it: every path asks for the token."""
    metrics = Metrics(service)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dropping = asyncio.create_task(_drop_idle(service))
        yield
        dropping.cancel()

    app = FastAPI(
        title="StreamPilot",
        description="A drone's camera streams in, decisions come out. One stream a client: a token, or a header "
        "X-Client-Id, makes a client.",
        version="1",
        lifespan=lifespan,
        exception_handlers={Problem: _on_problem},
        responses={
            **{status: {"model": ErrorBody} for status in (400, 401, 408, 409, 413, 422, 429, 503)},
        },
    )
    app.add_middleware(_Access, service=service, metrics=metrics)
    settings = service.settings

    @app.post("/append_frame", response_model=Appended, openapi_extra=_frames_body("one picture"))
    async def append_frame(request: Request, response: Response) -> Appended:
        """Take one frame into the memory."""
        return await _append(service, request, response, several=False)

    @app.post("/append_chunk", response_model=Appended, openapi_extra=_frames_body("pictures"))
    async def append_chunk(request: Request, response: Response) -> Appended:
        """Take several frames into the memory, oldest first."""
        return await _append(service, request, response, several=True)

    @app.post("/decide", response_model=DecisionBody, openapi_extra=_body(DecideBody))
    async def decide(request: Request) -> DecisionBody:
        """Decide on what is in the memory. Nothing of it stays there. The drone should hover meanwhile."""
        body = await bodies.read(request, DecideBody, settings)
        session = await run_in_threadpool(service.sessions.of, _client(request))
        decided = await run_in_threadpool(
            session.decide,
            body.question,
            max_new_tokens=body.max_new_tokens,
            temperature=body.temperature,
            tools=allowed_tools(body.tools),
            last_result=body.last_result,
        )
        status = session.status()
        return DecisionBody(
            action=decided.action,
            reasoning=decided.reasoning,
            ttft=decided.ttft_s,
            cache_len=status.cached_tokens,
            chunks_encoded=status.chunks_appended,
            tool=decided.tool,
            arguments=dict(decided.arguments),
        )

    @app.get("/status", response_model=Status)
    async def status(request: Request) -> Status:
        """The engine and the caller's stream in numbers."""
        session = await run_in_threadpool(service.sessions.find, _client(request))
        numbers = session.status() if session else None
        return Status(engine=service.engine(numbers), vram=Vram(**service.vram()))

    @app.post("/reset", response_model=Done)
    async def reset(request: Request) -> Done:
        """End the caller's stream; the next frame begins another."""
        await run_in_threadpool(service.sessions.drop, _client(request))
        return Done(status="ok", message="the stream has ended; the next frame begins another")

    @app.get("/health", response_model=HealthAnswer, responses={503: {"model": HealthAnswer}})
    async def health() -> JSONResponse:
        """Whether the model answers, by a probe of 8 tokens; 503 where it does not."""
        return health_answer(await run_in_threadpool(service.health))

    @app.get("/metrics", responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    async def numbers(request: Request) -> Response:
        """Counters: JSON, or Prometheus' text for whoever accepts text/plain."""
        return metrics.answer(request.headers.get("accept", ""))

    _add_watches(app, service)
    return app


def _add_watches(app: FastAPI, service: Service) -> None:
    """Standing questions of a client's stream, and their events."""
    sessions = service.sessions

    @app.post("/watches", response_model=WatchAnswer, openapi_extra=_body(WatchBody, required=True))
    async def add_watch(request: Request) -> StandingWatch:
        """Leave a question, which is asked again and again on new frames, between decisions."""
        body = await bodies.read(request, WatchBody, service.settings)
        session = await run_in_threadpool(sessions.of, _client(request))
        return session.watches.add(body.question, body.hover)

    @app.get("/watches", response_model=list[WatchAnswer])
    async def watches(request: Request) -> list[StandingWatch]:
        """The caller's watches, and which of them are true."""
        session = await run_in_threadpool(sessions.find, _client(request))
        return session.watches.all() if session else []

    @app.delete("/watches/{number}", response_model=Done, responses={404: {"model": ErrorBody}})
    async def remove_watch(request: Request, number: int) -> Done:
        """Take a watch away."""
        session = await run_in_threadpool(sessions.find, _client(request))
        if session is None:
            raise Problem(HTTPStatus.NOT_FOUND, "this client has no stream, and so no watch")
        session.watches.remove(number)
        return Done(status="ok", message=f"watch {number} is taken away")

    # Not in the document: its answer has no end, which nobody who tries every path would wait for.
    @app.get("/watches/events", include_in_schema=False)
    async def events(request: Request) -> StreamingResponse:
        """Server-sent events, one each time that a watch turns, until the stream ends."""
        client = _client(request)
        session = await run_in_threadpool(sessions.of, client)
        session.watches.check_room()

        async def sent() -> AsyncIterator[bytes]:
            with session.watches.listening() as events:
                yield KEEPALIVE_COMMENT  # the head goes out with it
                while sessions.find(client) is session:  # who listens is not silent
                    try:
                        turned = await asyncio.wait_for(events.get(), _KEEP_ALIVE_S)
                    except TimeoutError:
                        yield KEEPALIVE_COMMENT
                        continue
                    if turned is None:
                        return
                    yield format_sse_event(data_str=_watch_data(*turned), event="watch")

        return StreamingResponse(
            sent(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


def _watch_data(watch: StandingWatch, event: WatchEvent) -> str:
    fields = {"probability": event.probability, "cost_ms": event.cost_ms}
    return json.dumps({**dataclasses.asdict(watch), **fields})


def health_answer(health: Health) -> JSONResponse:
    """The answer of /health."""
    healthy = health.status is not HealthStatus.UNHEALTHY
    return JSONResponse(dataclasses.asdict(health), 200 if healthy else 503)


async def _append(service: Service, request: Request, response: Response, *, several: bool) -> Appended:
    pictures, fields = await bodies.read_frames(request, service.settings, several=several)
    session = await run_in_threadpool(service.sessions.of, _client(request), fields.chunk_frames)
    taken = await _result(session.submit_frames(pictures, fields.fps))
    response.headers["Server-Timing"] = f"engine;dur={1e3 * taken.engine_s:.2f}"
    return _appended(session, taken, fields)


def _appended(session: Session, taken: Taken, fields: FrameFields) -> Appended:
    if taken.refusal:
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, taken.refusal, 1)
    if taken.problems:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, f"{taken.admitted} frames taken; {'; '.join(taken.problems)}"
        )
    message = f"{taken.admitted} of {taken.admitted + taken.not_due} frames taken"
    if taken.not_due:
        interval_s = session.stream.form.frame_interval_s
        message += f": at {fields.fps:g} fps more come than the one each {interval_s:g} s that this model was made for"
    status = session.status()
    return Appended(
        status="ok", message=message, cache_len=status.cached_tokens, chunks=status.chunks_appended
    )


async def _result(ticket: Ticket[T]) -> T:
    """The ticket's result, awaited.

    Raises:
        Problem: it takes too long.
    """
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(done.set)

    ticket.add_done_callback(wake)
    try:
        await asyncio.wait_for(done.wait(), APPEND_LIMIT_S)
    except TimeoutError:
        ticket.cancel()
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, f"the model did not take it within {APPEND_LIMIT_S:g} s", 5
        ) from None
    return ticket.result


async def _drop_idle(service: Service) -> None:
    while True:
        await asyncio.sleep(_DROP_IDLE_EVERY_S)
        await run_in_threadpool(service.sessions.drop_idle)


def _client(request: Request) -> str:
    return str(request.scope["client_id"])


def _body(model: type[BaseModel], *, required: bool = False) -> dict[str, Any]:
    """OpenAPI's words for a body that a handler reads itself."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": required, "content": content}}


def _frames_body(what: str) -> dict[str, Any]:
    form = FrameFields.model_json_schema()
    form["properties"]["frame"] = {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "description": f"{what}, JPEG or PNG",
    }
    form["required"] = ["frame"]
    content = {
        "application/json": {"schema": FrameBody.model_json_schema()},
        "multipart/form-data": {"schema": form},
    }
    return {"requestBody": {"required": True, "content": content}}


async def _on_problem(_: Request, problem: Exception) -> JSONResponse:
    assert isinstance(problem, Problem)
    return _answer(problem)


def _answer(problem: Problem) -> JSONResponse:
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="StreamPilot"'
    if problem.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.REQUEST_TIMEOUT):
        headers["Connection"] = "close"  # the rest of the body is not waited for
    return JSONResponse({"detail": problem.detail}, problem.status, headers)


class _Access:
    """Who calls, before anything of the request is looked at; and how long it took."""

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self._app = app
        self._tokens: Sequence[str] = service.settings.tokens
        self._rate = access.RateLimit(service.settings.requests_per_s, service.clock.now)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            scope["client_id"] = access.client_of(Headers(scope=scope), self._tokens)
            if not scope["path"].startswith(PAGE_PATH):  # whose own limit is how many are open
                self._rate.check(scope["client_id"])
        except Problem as problem:
            if scope["type"] == "http":
                await _answer(problem)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:100]})
            return
        if scope["type"] == "http":
            await self._metrics.timed(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)
