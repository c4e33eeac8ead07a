"""Deploy a tuned model where the provider requires that: Azure and Nebius. Never tested against the live services."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai

from ftkit.api import Run
from ftkit.errors import InputError, RunFailed

from ._client import Provider, secret
from ._errors import Malformed
from ._follow import checkpoint_step
from ._http import masked
from ._lists import items
from ._logs import mask_logs
from ._mask import Mask
from ._throttle import jittered

_WAIT = 3600.0  # seconds that a deployment may take


def deploy(provider: Provider, run: Run, job: Any) -> str:
    """Return the name by which the tuned model answers. A second deployment under one name changes nothing."""
    if provider.dialect.deploy == "azure":
        return _deploy_at_azure(provider, run, job)
    if provider.dialect.deploy == "nebius":
        return _deploy_at_nebius(provider, run, job)
    if not job.fine_tuned_model:
        raise RunFailed(
            f"job {job.id} succeeded and names no tuned model",
            f"look at it on the provider's own pages; look again: ftkit run --resume {run.dir}",
        )
    return str(job.fine_tuned_model)


def _deployment_name(run: Run) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", run.mark.lower()).strip("-")[-40:].strip("-")


def missing_token(name: str) -> tuple[str, str]:
    """Return the message and the hint where the token that deploys at Azure is missing."""
    return (
        f"no token for Azure's control plane: {name} is not set",
        f"export {name}=$(az account get-access-token --query accessToken -o tsv), or write it into .env",
    )


def _deploy_at_azure(provider: Provider, run: Run, job: Any) -> str:
    o = provider.options.azure
    assert o is not None  # preflight requires it
    token = secret(o.token_env)
    if not token:
        message, hint = missing_token(o.token_env)
        raise InputError(message, f"{hint}, and resume with ftkit run --resume {run.dir}")
    name = _deployment_name(run)
    url = (
        f"{o.management_url}/subscriptions/{o.subscription}/resourceGroups/{o.resource_group}/providers/"
        f"Microsoft.CognitiveServices/accounts/{o.resource}/deployments/{name}?api-version=2024-10-01"
    )
    headers = {"Authorization": f"Bearer {token}"}
    model = {"format": "OpenAI", "name": job.fine_tuned_model, "version": "1"}
    body = {"sku": {"name": o.sku, "capacity": o.capacity}, "properties": {"model": model}}
    run.log("warning", message=f"the deployment {name} is billed by the hour until it is deleted in Azure's portal")
    _send_request(provider, "PUT", url, headers, body, token)
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        answer = _send_request(provider, "GET", url, headers, None, token)
        state = (answer.get("properties") or {}).get("provisioningState")
        if state == "Succeeded":
            return name
        if state in ("Failed", "Canceled"):
            raise RunFailed(
                f"Azure could not deploy the tuned model: {state}", "look at the deployment in Azure's portal"
            )
        time.sleep(jittered(min(5.0, provider.options.poll_seconds)))
    raise RunFailed(
        f"Azure did not deploy the tuned model within {_WAIT:.0f} s", f"ftkit run --resume {run.dir} looks again"
    )


def _deploy_at_nebius(provider: Provider, run: Run, job: Any) -> str:
    checkpoints = provider.read(
        "listing the checkpoints", lambda: list(items(provider.client.fine_tuning.jobs.checkpoints.list(job.id)))
    )
    if not checkpoints:
        raise RunFailed(
            f"job {job.id} succeeded and left no checkpoint to deploy", "look at it on the provider's own pages"
        )
    last = max(checkpoints, key=checkpoint_step)
    parts = urlsplit(provider.url)
    url = urlunsplit(parts._replace(path=parts.path.rstrip("/").removesuffix("/v1") + "/v0/models"))
    key = provider.client.api_key
    headers = {"Authorization": f"Bearer {key}"}
    name = _deployment_name(run)
    body = {"source": f"{job.id}:{last.id}", "base_model": provider.options.base_model, "name": name}

    def find_or_deploy() -> None:
        """Deploy the adapter unless it is there: an earlier request may have arrived although its answer was lost."""
        if _find_at_nebius(provider, url, headers, name) is None:
            _send_once(provider, "POST", url, headers, body, key)

    provider.read("deploying the tuned model (POST)", find_or_deploy)
    deadline = time.monotonic() + _WAIT
    while time.monotonic() < deadline:
        found = _find_at_nebius(provider, url, headers, name) or {}
        if found.get("status") == "active":
            return str(found["name"])
        if found.get("status") == "error":
            raise RunFailed(f"Nebius could not deploy the adapter: {provider.clean(found.get('status_reason'))}",
                            "only some base models can serve an adapter without a machine of their own")  # fmt: skip
        time.sleep(jittered(min(5.0, provider.options.poll_seconds)))
    raise RunFailed(
        f"Nebius did not deploy the adapter within {_WAIT:.0f} s", f"ftkit run --resume {run.dir} looks again"
    )


def _find_at_nebius(provider: Provider, url: str, headers: dict[str, str], name: str) -> dict[str, Any] | None:
    listed = _send_request(provider, "GET", url, headers, None, provider.client.api_key)
    models = listed.get("models") or listed.get("data") or []
    return next((m for m in models if isinstance(m, dict) and name in str(m.get("name"))), None)


def _send_request(
    provider: Provider, method: str, url: str, headers: dict[str, str], body: Any, secret: str
) -> dict[str, Any]:
    """Send one request outside the OpenAI API and return its JSON. Raises RunFailed, which never contains the secret.

    The request is repeated after a failure that may disappear: it must be one that may be sent twice.
    """
    send = partial(_send_once, provider, method, url, headers, body, secret)
    return provider.read(f"deploying the tuned model ({method})", send)


def _send_once(
    provider: Provider, method: str, url: str, headers: dict[str, str], body: Any, secret: str
) -> dict[str, Any]:
    """Send one request once. May raise what the client raises. It follows no redirect."""
    mask = Mask(secret)
    mask_logs(mask)
    request = httpx2.Request(method, url)
    try:
        answer = httpx2.request(method, url, headers=headers, json=body, timeout=provider.options.timeout)
    except httpx2.TransportError as error:
        raise openai.APIConnectionError(request=request) from error
    answer = masked(answer, mask)
    if answer.status_code in (401, 403):
        text = provider.clean(answer.text[:300])
        raise RunFailed(f"{provider.dialect.label} does not let this token deploy ({answer.status_code}): {text}",
                        f"get a new one, with the right to deploy. {provider.resume_hint}".strip())  # fmt: skip
    if not answer.is_success:
        raise openai.APIStatusError(answer.text[:300], response=answer, body=None)
    data = answer.json()
    if not isinstance(data, dict):
        raise Malformed("no JSON object")
    return data
