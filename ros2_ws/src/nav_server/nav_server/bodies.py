"""Bodies of requests: read with a limit and in time, checked against the documented fields, pictures looked at."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Request
from PIL import Image, UnidentifiedImageError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from nav_agent import toolset
from nav_server.problems import Problem
from nav_server.settings import HttpSettings

M = TypeVar("M", bound=BaseModel)

SEPARATOR = "|||"
"""Between the pictures of `/append_chunk`: no base64 has it."""
MOST_FRAMES = 64
FEWEST_TOKENS = 8
"""The longest call of the nine tools samples 7 tokens: with fewer it could not be completed."""
DEFAULT_QUESTION = (
    "Observe the current UAV camera view. Describe obstacles, free paths, and recommend the next navigation action "
    "(forward/left/right/hover). Be concise."
)
_FORMATS = ("JPEG", "PNG")
_FRAME_FIELD = "frame"
"""Of a form: the pictures as files."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class FrameFields(_Body):
    """How pictures are taken in."""

    fps: float = Field(
        2.0, gt=0, le=60, description="Frames a second: how long after the one before it was taken."
    )
    chunk_frames: int = Field(1, ge=1, le=MOST_FRAMES, description="Frames that the model sees together.")


class FrameBody(FrameFields):
    """One picture, or for /append_chunk several with ||| between, each a JPEG or PNG in base64."""

    frame_b64: str = Field(min_length=1, examples=["/9j/4AAQSkZJRg..."])


def _known(tool: str) -> str:
    if tool not in toolset.BY_NAME:
        raise ValueError(f"there is no such tool; there are {', '.join(toolset.BY_NAME)}")
    return tool


class DecideBody(_Body):
    """What to do next."""

    question: str = Field(
        DEFAULT_QUESTION, max_length=8000, pattern=r"\S", description="The mission, in words."
    )
    max_new_tokens: int = Field(
        128, ge=FEWEST_TOKENS, le=4096, description="A ceiling; the kind of request decides below it."
    )
    temperature: float = Field(0.3, ge=0, le=5, description="0: the likeliest.")
    tools: (
        list[Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(toolset.BY_NAME)})]]
        | None
    ) = Field(None, min_length=1, max_length=64, description="Tools that may be called; default: all nine.")
    last_result: str = Field(
        "", max_length=200, description="What came of the last call, as the model reads it."
    )


class WatchBody(_Body):
    """A standing question, answered by yes or no on each new frame."""

    question: str = Field(
        max_length=400,
        pattern=r"\S",
        description='True when the answer is yes; "no: QUESTION" when it is no.',
        examples=["a person ahead?"],
    )
    hover: bool = Field(False, description="Whether the client should stop once it is true.")


async def read(request: Request, model: type[M], settings: HttpSettings) -> M:
    """The body as JSON of this form; an empty body is all its defaults.

    Raises:
        Problem: too large, too slow, no JSON, or fields that cannot be.
    """
    body = await _within(_limited(request, settings).body(), settings.body_s)
    return await run_in_threadpool(_parsed, body, model)


async def read_frames(
    request: Request, settings: HttpSettings, *, several: bool
) -> tuple[list[bytes], FrameFields]:
    """The pictures of a body (JSON, or a form with files called `frame`), and its other fields.

    Raises:
        Problem: as `read`; or a picture that is none, or too large.
    """
    limited = _limited(request, settings)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        pictures, fields = await _within(_form(limited), settings.body_s)
        return await run_in_threadpool(_from_form, pictures, fields, settings, several)
    body = await _within(limited.body(), settings.body_s)
    return await run_in_threadpool(_from_json, body, settings, several)


def _limited(request: Request, settings: HttpSettings) -> Request:
    """The same request, whose body ends with a Problem once it is too large: nothing beyond is kept."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > settings.max_body_bytes:
        raise _too_large(settings)
    return Request(request.scope, _counting(request.receive, settings))


def _counting(receive: Receive, settings: HttpSettings) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > settings.max_body_bytes:
            raise _too_large(settings)
        return message

    return counted


def _too_large(settings: HttpSettings) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {settings.max_body_bytes} bytes: send smaller pictures, or fewer at a time",
    )


async def _within(reading: Any, limit_s: float) -> Any:
    try:
        return await asyncio.wait_for(reading, limit_s)
    except TimeoutError:
        raise Problem(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come within {limit_s:g} s") from None


def _parsed(body: bytes, model: type[M]) -> M:
    try:
        return model.model_validate(json.loads(body or b"{}"))
    except (ValueError, RecursionError) as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, _words(error)) from None


def _words(error: ValueError | RecursionError) -> str:
    """Why a body is refused. Values are not repeated: they may be megabytes."""
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(_shown, one['loc'])) or 'body'}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False, include_input=False)[:8]
        )
    return f"the body is no JSON object: {error}"


def _shown(name: str | int) -> str:
    """A field's name, which may be anything."""
    return str(name)[:40].encode("ascii", "backslashreplace").decode()


async def _form(request: Request) -> tuple[list[bytes], dict[str, str]]:
    try:
        form: FormData = await request.form(max_files=MOST_FRAMES, max_fields=8)
    except HTTPException as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, f"the form cannot be read: {error.detail}") from None
    try:
        pictures, fields = [], {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = value
            elif name == _FRAME_FIELD:
                pictures.append(await _file(value))
            else:
                raise Problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY, f"unknown file {_shown(name)}: pictures are called frame"
                )
        return pictures, fields
    finally:
        await form.close()


async def _file(upload: UploadFile) -> bytes:
    return await upload.read()


def _from_form(
    pictures: list[bytes], fields: dict[str, str], settings: HttpSettings, several: bool
) -> tuple[list[bytes], FrameFields]:
    if _FRAME_FIELD in fields or not pictures:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "the form needs the field frame with a picture as a file"
        )
    try:
        body = FrameFields.model_validate(fields)
    except ValidationError as error:
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, _words(error)) from None
    return _checked(pictures, settings, several), body


def _from_json(body: bytes, settings: HttpSettings, several: bool) -> tuple[list[bytes], FrameFields]:
    frames = _parsed(body, FrameBody)
    parts = frames.frame_b64.split(SEPARATOR) if several else [frames.frame_b64]
    pictures = []
    for number, part in enumerate(parts, start=1):
        try:
            pictures.append(base64.b64decode("".join(part.split()), validate=True))
        except (binascii.Error, ValueError) as error:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, f"frame_b64: picture {number} is no base64 ({error})"
            ) from None
    return _checked(pictures, settings, several), frames


def _checked(pictures: list[bytes], settings: HttpSettings, several: bool) -> list[bytes]:
    """The same, once their heads say that they are pictures of a size that can be decoded without harm."""
    if len(pictures) > (MOST_FRAMES if several else 1):
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"{len(pictures)} pictures: /append_frame takes one, /append_chunk up to {MOST_FRAMES}",
        )
    for number, data in enumerate(pictures, start=1):
        try:
            # The head alone is read; Image.open warns of large pictures itself, at a size of its own.
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                width, height = picture.size
        except (
            UnidentifiedImageError,
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"picture {number} of {len(data)} bytes is no JPEG or PNG that can be used: {_kind(error)}",
            ) from None
        if width * height > settings.max_pixels:
            raise Problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"picture {number} says that it is {width}x{height} pixels: at most {settings.max_pixels} are taken",
            )
    return pictures


def _kind(error: Exception) -> str:
    return "unknown kind of file" if isinstance(error, UnidentifiedImageError) else str(error)
