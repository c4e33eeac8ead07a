"""The official description of OpenAI's API, and whether a request or a response conforms to it.

The description is ../shared/data/openai-api/openapi.yaml; tests that need it skip where it is absent.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT.parent / "shared" / "data" / "openai-api" / "openapi.yaml"
IRREPLACEABLE = ("seed",)  # deprecated, without a replacement
# Only what ftkit uses: resolving the whole description takes several times as long.
PATHS = ("/files", "/uploads", "/fine_tuning/jobs", "/models", "/batches", "/chat/completions")

pytest.importorskip("openapi_core", reason="openapi-core is not installed")


__all__ = ["Disagrees", "Spec", "load", "spec"]


class Disagrees(AssertionError):
    """A request or a response is not what the description says."""


class Request:
    """A request in the form that openapi-core requires; `path` begins with the API's own root (/v1/files)."""

    def __init__(self, method: str, url: str, body: bytes, content_type: str | None) -> None:
        from openapi_core.datatypes import RequestParameters
        from werkzeug.datastructures import Headers, ImmutableMultiDict

        parts = urlsplit(url)
        self.host_url = "https://api.openai.com"
        self.path = parts.path[parts.path.index("/v1/") :]
        self.method = method.lower()
        self.body = body or None
        self.content_type = content_type or ""
        query = ImmutableMultiDict(parse_qsl(parts.query, keep_blank_values=True))
        headers = Headers({"Authorization": "Bearer x", "Content-Type": self.content_type})
        self.parameters = RequestParameters(query=query, header=headers, cookie=ImmutableMultiDict())


class Response:
    """A response in the form that openapi-core requires."""

    def __init__(self, status: int, body: bytes, content_type: str) -> None:
        self.status_code, self.data, self.content_type = status, body, content_type
        self.headers: dict[str, str] = {}


class Spec:
    """The description, read once."""

    def __init__(self, data: dict[str, Any]) -> None:
        from openapi_core import Config, OpenAPI

        self.data = data
        # The description itself is not checked: that takes seconds.
        self.openapi = OpenAPI.from_dict(data, config=Config(spec_validator_cls=None))

    def validate_request(self, method: str, url: str, body: bytes = b"", content_type: str | None = None) -> None:
        """Raise Disagrees where a request (a whole URL or a path from /v1 on) does not conform."""
        self._call(self.openapi.validate_request, Request(method, url, body, content_type), f"{method} {url}")
        if (content_type or "").startswith("application/json"):
            path = urlsplit(url).path
            declared = self._properties(path[path.index("/v1/") + 3 :], method)
            for key in json.loads(body):
                if key not in declared or (declared[key].get("deprecated") and key not in IRREPLACEABLE):
                    raise Disagrees(f"{method} {url}: {key!r} is {'deprecated' if key in declared else 'not known'}")

    def _properties(self, path: str, method: str) -> dict[str, Any]:
        """Return the fields of a request's body, those of all its parts together."""

        def of(schema: dict[str, Any]) -> dict[str, Any]:
            if "$ref" in schema:
                return of(self.data["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
            found = dict(schema.get("properties", {}))
            for part in schema.get("allOf", ()):
                found |= of(part)
            return found

        operations: dict[str, Any] = next(
            item for known, item in self.data["paths"].items() if re.fullmatch(re.sub(r"{\w+}", "[^/]+", known), path)
        )
        return of(operations[method.lower()]["requestBody"]["content"]["application/json"]["schema"])

    def validate_response(
        self,
        method: str,
        url: str,
        status: int,
        body: bytes,
        content_type: str = "application/json",
    ) -> None:
        """Raise Disagrees where the response to a request does not conform.

        The description contains successes only; an error must have OpenAI's shape, `{"error": {"message", ...}}`.
        """
        if status >= 400:
            error = json.loads(body).get("error")
            if not isinstance(error, Mapping) or not {"message", "type", "param", "code"} <= set(error):
                raise Disagrees(f"{method} {url}: {status} {body[:500]!r} is no error in OpenAI's shape")
            return
        if urlsplit(url).path.endswith("/content"):
            return  # a file's bytes; the description says JSON string, which no server sends
        request = Request(method, url, b"", None)
        answer = Response(status, body, content_type)
        self._call(lambda r: self.openapi.validate_response(r, answer), request, f"{method} {url} -> {status}")

    def validate_schema(self, name: str, data: Any) -> None:
        """Raise Disagrees where `data` does not conform to the schema of that name (an event of a stream)."""
        import jsonschema

        schema = {"$ref": f"#/components/schemas/{name}", "components": self.data["components"]}
        for error in jsonschema.Draft202012Validator(schema).iter_errors(data):
            raise Disagrees(f"{name}: at {'/'.join(map(str, error.absolute_path))}: {error.message[:400]}")

    def _call(self, check: Any, request: Request, what: str) -> None:
        from openapi_core.exceptions import OpenAPIError

        try:
            check(request)
        except OpenAPIError as error:
            reasons: list[str] = []
            cause: BaseException | None = error
            while cause is not None:
                reasons.append(str(cause))
                for inner in getattr(cause, "schema_errors", ()):
                    reasons.append(f"at {'/'.join(map(str, inner.absolute_path))}: {inner.message[:400]}")
                    reasons += [f"  or {c.message[:200]}" for c in inner.context or ()]
                cause = cause.__cause__
            raise Disagrees(f"{what}: " + "\n".join(reasons)) from None


@functools.cache
def load() -> Spec:
    """Return the description. Skips the calling test where the file is absent."""
    if not DESCRIPTION.exists():
        pytest.skip("the description of OpenAI's API is not on this machine: shared/data/openai-api/openapi.yaml")
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    whole = yaml.load(DESCRIPTION.read_bytes(), Loader=loader)
    # Its own example of a paused job has this status, but its list of statuses does not.
    whole["components"]["schemas"]["FineTuningJob"]["properties"]["status"]["enum"].append("paused")
    return Spec(_pruned(_normalised(whole)))


@pytest.fixture(scope="session", name="openai_spec")
def spec() -> Spec:
    """The description as a fixture: `from openai_spec import spec` in the test file brings it in."""
    return load()


def _normalised(node: Any) -> Any:
    """Fix what is OpenAPI 3.0 in a description that calls itself 3.1, and what openapi-core cannot handle.

    Boolean exclusiveMinimum and nullable; binary strings, which arrive as bytes; discriminators without a
    mapping, which name no existing schema (the alternatives are tried anyway).
    """
    if isinstance(node, list):
        return [_normalised(n) for n in node]
    if not isinstance(node, dict):
        return node
    node = {key: _normalised(value) for key, value in node.items() if key != "discriminator"}
    for exclusive, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), bool) and node.pop(exclusive):
            node[exclusive] = node.pop(limit)
    if node.get("format") == "binary":
        del node["type"]
    if "in" in node and isinstance(node.get("schema"), dict) and "anyOf" in node["schema"]:
        node["schema"] = node["schema"]["anyOf"][0]  # a query parameter is never null
    if node.get("nullable") is True:
        del node["nullable"]
        return {"anyOf": [node, {"type": "null"}], "deprecated": node.get("deprecated", False)}
    return node


def _pruned(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the description with only `PATHS` and the schemas that they use."""
    paths = {path: item for path, item in whole["paths"].items() if path.startswith(PATHS) and "?" not in path}
    schemas = whole["components"]["schemas"]
    reached: set[str] = set()
    rest = {kind: items for kind, items in whole["components"].items() if kind != "schemas"}
    todo = [json.dumps([paths, rest], default=str)]
    while todo:
        for name in re.findall(r'"#/components/schemas/([^"]+)"', todo.pop()):
            if name not in reached:
                reached.add(name)
                todo.append(json.dumps(schemas[name], default=str))
    components = {**rest, "schemas": {name: schemas[name] for name in reached}}
    return {**{k: v for k, v in whole.items() if k not in ("paths", "components", "webhooks")},
            "paths": paths, "components": components}  # fmt: skip
