"""Errors in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, which its clients raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from voxloop.errors import AudioError, ConflictError, UnknownRecord, UsageError, VoxloopError
from voxloop.serving.batches import QueueFull

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
TOO_LARGE = "file_too_large"  # the code of 413


class Problem(VoxloopError):
    """What a client is told, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        also: dict[str, Any] | None = None,  # fields of the answer beside `error`
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s
        self.also = also or {}


def problem_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def answer(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    also: dict[str, Any] | None = None,
) -> JSONResponse:
    """An error as a response; what repeating cannot help, OpenAI's clients are told not to repeat."""
    headers = {} if status in (408, 409, 429) or status >= 500 else {"x-should-retry": "false"}
    body = problem_body(status, message, code=code, param=param) | (also or {})
    return JSONResponse(body, status_code=status, headers=headers)


def status_of(error: VoxloopError) -> int:
    """The HTTP status that stands for an error."""
    if isinstance(error, Problem):
        return error.status
    if isinstance(error, QueueFull):
        return 429
    if isinstance(error, ConflictError):
        return 409
    return 404 if isinstance(error, UnknownRecord) else 400 if isinstance(error, UsageError | AudioError) else 500


def register(app: FastAPI) -> None:
    """Have every error of the application answered in this shape."""

    @app.exception_handler(Problem)
    def problem(request: Request, error: Problem) -> JSONResponse:
        said = answer(error.status, str(error), code=error.code, param=error.param, also=error.also)
        if error.retry_after_s is not None:
            said.headers["retry-after"] = str(error.retry_after_s)
        return said

    @app.exception_handler(QueueFull)
    def full(request: Request, error: QueueFull) -> JSONResponse:
        said = answer(429, str(error), code="queue_full")
        said.headers["retry-after"] = str(error.retry_after_s)
        return said

    @app.exception_handler(AudioError)
    def audio(request: Request, error: AudioError) -> JSONResponse:
        return answer(400, str(error), code=error.reason.replace(" ", "_"), param="file")

    @app.exception_handler(VoxloopError)
    def other(request: Request, error: VoxloopError) -> JSONResponse:
        return answer(status_of(error), str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return answer(400, f"{where}: {first['msg']}", code="invalid_value", param=where or None)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), code=TOO_LARGE if error.status_code == 413 else None)
