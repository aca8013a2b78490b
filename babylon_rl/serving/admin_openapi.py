"""Operations of the admin API, and the OpenAPI document that is generated from them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from babylon_rl.serving.admin_shapes import ErrorReply, RequestShape, UploadMetadata
from babylon_rl.serving.status_shapes import Shape

_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True)
class Operation:
    """One method of a path, as it is described and run.

    ``errors`` are its statuses besides those of access. ``starts``: it is limited in rate, as it starts work.
    """

    method: str
    path: str
    summary: str
    answer: type[Shape]
    run: Callable[[Any, Any], Shape]
    body: type[RequestShape] | None = None
    cron: bool = False
    upload: bool = False
    errors: tuple[int, ...] = ()
    starts: bool = False


_MEANINGS = {
    400: "The request is not as described.", 401: "No valid key.", 403: "Not from here: without keys only this machine is served.",
    404: "There is nothing of that name.",
    408: "The body came too slowly.", 409: "The state forbids it; the error says why.", 413: "The body is too large.",
    415: "The body is of another content type.", 429: "Too many requests; the header retry-after says when.",
    503: "The database, Dagster or MODEL_STORAGE_URL does not answer.",
}  # fmt: skip


def openapi_document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Generate the OpenAPI 3.1 document of some operations."""
    used = [kind for operation in operations for kind in (operation.answer, operation.body) if kind is not None]
    # Without repetitions, in the order of the operations: the same document at every start.
    types = dict.fromkeys([*used, ErrorReply, UploadMetadata])
    _, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "babylon_rl admin API", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of `babylon-rl keys create`."},
                "cron": {"type": "http", "scheme": "bearer", "description": "CRON_SECRET."},
            },
        },
    }  # fmt: skip


def _operation(operation: Operation) -> dict[str, Any]:
    statuses = {401, 403, 429, 503, *operation.errors}
    # Statuses of reading a body.
    if operation.body is not None or operation.upload:
        statuses |= {400, 408, 413, 415}
    document: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method.lower() + re.sub(r"\W+", "_", operation.path).rstrip("_"),
        "security": [{"cron" if operation.cron else "key": []}],
        "responses": {"200": _response("The answer.", operation.answer)}
        | {str(status): _response(_MEANINGS[status], ErrorReply) for status in sorted(statuses)},
    }
    names = re.findall(r"{(\w+)}", operation.path)
    if names:
        document["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.body is not None:
        body = {"application/json": {"schema": _reference(operation.body)}}
        document["requestBody"] = {"required": any(field.required for field in msgspec.structs.fields(operation.body)), "content": body}
    if operation.upload:
        file = {"type": "string", "format": "binary", "description": "The adapter's weights: adapter_model.safetensors."}
        schema: dict[str, Any] = {
            "type": "object", "required": ["model", "version", "metadata"],
            "properties": {"model": file, "version": {"type": "string"}, "metadata": _reference(UploadMetadata)},
        }  # fmt: skip
        content = {"multipart/form-data": {"schema": schema, "encoding": {"metadata": {"contentType": "application/json"}}}}
        document["requestBody"] = {"required": True, "content": content}
    return document


def _reference(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + kind.__name__}


def _response(description: str, kind: type[Shape]) -> Mapping[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _reference(kind)}}}
