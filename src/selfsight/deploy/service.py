"""The routes of a service: heads that answer, take labels back, and change places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from selfsight.deploy.answering import Answered, Answering, as_coco, check_coco, plain
from selfsight.deploy.audit import Audit
from selfsight.deploy.batching import Batching
from selfsight.deploy.described import IMAGES, LABEL
from selfsight.deploy.drifting import Drifting
from selfsight.deploy.exported import Exported
from selfsight.deploy.feedback import Feedback, Known
from selfsight.deploy.figures import Figures
from selfsight.deploy.gate import MOST_BYTES, SECONDS
from selfsight.deploy.received import MOST_IMAGES, MOST_PIXELS, Refused, parts_of
from selfsight.deploy.versions import MOST_EXAMPLE, Switched, Version, Versions
from selfsight.encoders.licences import concern
from selfsight.errors import MachineError, in_words
from selfsight.heads.outlined import needs_masks
from selfsight.heads.predictions import decision
from selfsight.heads.targets import read_label
from selfsight.pages.gate import refusal
from selfsight.pages.page import add_files, add_refusals

Name = Annotated[str, Field(max_length=64)]


class Load(BaseModel):
    """Which head is to get another version. folder: the name of a folder beside that of the head; its own, read again,
    if not given."""

    model_config = ConfigDict(extra="forbid")
    name: Name
    folder: Name | None = None


class Rollback(BaseModel):
    """Which head is to go back to the version before."""

    model_config = ConfigDict(extra="forbid")
    name: Name


class Service:
    """Heads as a service. Everything that it writes is in the folder `state`.

    log_names: whether the audit log has the names of images.
    """

    def __init__(self, versions: Versions, state: Path, log_names: bool) -> None:
        self._versions, self._log_names = versions, log_names
        self._batching = Batching(lambda images: self.figures.batch(images))
        self.figures = Figures(lambda: self._batching.waiting)
        self._answering = Answering(self._batching)
        self._audit, self._feedback = Audit(state), Feedback(state / "heads")
        self.images = 0
        self._drifting = Drifting(self.figures.drifted)
        self._told()

    def close(self) -> None:
        """Answer what waits, and let all that was written be on disk."""
        self._batching.stop()
        self._answering.close()
        self._drifting.close()
        self._audit.close()

    # -- what the routes do --

    async def predict(self, name: str, request: Request, format: str, pictures: bool) -> Response:
        """Answer for the images of a request."""
        now, request_id = self._versions.of(name), request.state.request_id
        images, _ = parts_of(request.headers.get("content-type", ""), await request.body())
        if not images:
            raise Refused(HTTPStatus.BAD_REQUEST, "The request brings no image.", "Send its bytes, or files.")
        drawn = pictures
        if format == "coco":
            drawn = needs_masks(check_coco(now.head))
        found = await self._answering.about(now.head, images, drawn)
        if not found[0].row["reason"] and len(images[0].data) <= MOST_EXAMPLE:
            now.example = images[0]
        self._feedback.remember(request_id, name, [each.page for each in found])
        decided = ["unreadable" if each.row["reason"] else decision(each.row) for each in found]
        names = {"names": [each.page.row["uri"] for each in found]} if self._log_names else {}
        self._log("predict", request_id, name, now.head.digest, decided, **names)
        self._count(name, found)
        about = {"request_id": request_id, "head": name, "head_digest": now.head.digest}
        if format == "coco":
            content = await run_in_threadpool(lambda: json.loads(as_coco(now.head, found)))
            return JSONResponse(content | {"info": about})
        return JSONResponse(about | {"predictions": [plain(each.row) for each in found]})

    async def feedback(self, name: str, request: Request) -> Response:
        """Keep what somebody said of an image."""
        now, request_id = self._versions.of(name), request.state.request_id
        kind, body = request.headers.get("content-type", ""), await request.body()
        if kind.partition(";")[0].strip().lower() == "multipart/form-data":
            images, told = parts_of(kind, body)
            if len(images) != 1:
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "Feedback is about one image.", "Send one file.")
            image = Known.of((await self._answering.pages(images[0]))[0])
            said = _of_fields(told, getattr(now.head.about, "kind", "class"))
        else:
            said = _of_json(body)
            known, place = self._feedback.images_of(str(said.get("request_id", "")), name), said.get("image", 0)
            if type(place) is not int or not 0 <= place < len(known):
                raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"That request has images 0 to {len(known) - 1}.")
            image = known[place]
        by = said.get("by", "local")
        if not isinstance(by, str) or not 1 <= len(by) <= 80 or not by.isprintable():
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "by is a name of at most 80 characters.")
        field = await run_in_threadpool(self._feedback.give, name, now.head, image, said, by)
        self._log("feedback", request_id, name, now.head.digest, said[field] if field == "label" else field)
        self.figures.labelled(name)
        about = {"request_id": request_id, "head": name, "head_digest": now.head.digest}
        return JSONResponse(about | {"id": image.id, "field": field})

    def switched(self, asked: str, done: Switched, request_id: str) -> Response:
        """Say that a version took the place of another."""
        self._log(asked, request_id, done.head, done.head_digest, f"in place of {done.digest_before}")
        self._told()
        return JSONResponse({"request_id": request_id, **asdict(done)})

    def card(self) -> dict[str, object]:
        """What the service is, what it may be used for, and its limits."""
        limits = {"bytes": MOST_BYTES, "images": MOST_IMAGES, "pixels": MOST_PIXELS, "seconds": SECONDS}
        return {
            "selfsight": version("selfsight"),
            "limits": limits,
            "heads": [self._card(each) for each in self._versions],
        }

    def _card(self, served: Version) -> dict[str, object]:
        watched = "The last 64 images are compared with what it learnt from: /metrics, selfsight_drift."
        return _carded(served) | {"drift": self._drifting.lacking.get(served.name, watched)}

    def _log(self, asked: str, request_id: str, name: str, digest: str, decided: object, **more: object) -> None:
        """Append to the audit log. Raises `MachineError` where it cannot be written: no answer without a line."""
        try:
            self._audit.write(asked, request_id, name, digest, decided, **more)
        except OSError as error:
            raise MachineError(
                f"The audit log cannot be written ({in_words(error)}), so nothing is answered."
            ) from None

    def _told(self) -> None:
        self.figures.heads([(each.name, each.head.digest) for each in self._versions])
        self._drifting.watch((each.name, each.head) for each in self._versions)

    def _count(self, name: str, found: list[Answered]) -> None:
        self.images += len(found)
        for each in found:
            row = each.row
            if row["reason"]:
                self.figures.decided(name, "unreadable")
            elif "objects" in row:
                for one in row["objects"]:
                    self.figures.decided(name, one["label"])
            elif "labels" in row:
                for label in row["labels"] or ["(none)"]:
                    self.figures.decided(name, label)
            else:
                self.figures.decided(name, "number" if "value" in row else decision(row))


def _carded(served: Version) -> dict[str, object]:
    about = served.head.about
    return {
        "name": served.name,
        "head_digest": served.head.digest,
        "computes_with": "ONNX Runtime" if isinstance(served.head, Exported) else "PyTorch",
        "task": about.task,
        "method": about.method,
        "intended_use": about.intended_use,
        "licence": about.licence,
        "licence_says": concern(about.licence) or "It allows any use.",
        "limits": about.notes,
        "learnt_from": about.items,
        "classes": list(getattr(about, "classes", ())),
        "metrics": _plain_metrics(about.metrics),
        "input": {name: about.geometry.get(name) for name in ("channels", "depth", "size", "mode")},
    }


def _plain_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    def of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: of(each) for name, each in value.items()}
        return plain(value.to_dict() if hasattr(value, "to_dict") else value)

    return {name: of(value) for name, value in metrics.items()}


def _of_json(body: bytes) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Refused(
            HTTPStatus.UNPROCESSABLE_ENTITY, "Feedback is a JSON object, or multipart/form-data with an image.",
            'For example: {"request_id": "…", "label": "good"}.',
        )  # fmt: skip
    return said


def _of_fields(told: dict[str, str], kind: str) -> dict[str, Any]:
    """What the fields beside an image say: several labels as `a|b`, a mask or boxes as JSON."""
    said: dict[str, Any] = dict(told)
    try:
        said |= {name: json.loads(said[name]) for name in ("mask", "boxes") if name in said}
        if "label" in said:
            label = read_label(said["label"], kind)
            said["label"] = list(label) if isinstance(label, tuple) else label
    except (ValueError, RecursionError):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "That is not what this head learns from.") from None
    return said


# -- the routes --


def app_of(service: Service, versions: Versions) -> FastAPI:
    """The app of a service."""
    about = "Heads of selfsight. Every request but /health and /ready needs the header Authorization: Bearer TOKEN."
    app = FastAPI(
        title="selfsight", version=version("selfsight"), description=about, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip

    @app.post("/v1/heads/{name}/predict", openapi_extra=IMAGES, summary="Answer for one image or many")
    async def predict(
        name: str, request: Request, format: Literal["json", "coco"] = "json",
        pictures: Annotated[bool, Query(description="Masks, maps and overlays as PNG in base64")] = False,
    ) -> Response:  # fmt: skip
        return await service.predict(name, request, format, pictures)

    @app.post("/v1/heads/{name}/feedback", openapi_extra=LABEL, summary="Say what is true of an image")
    async def feedback(name: str, request: Request) -> Response:
        return await service.feedback(name, request)

    @app.post("/v1/admin/load", summary="Serve another version of a head, once it answers for an example")
    def load(given: Load, request: Request) -> Response:
        return service.switched("load", versions.load(given.name, given.folder), request.state.request_id)

    @app.post("/v1/admin/rollback", summary="Serve the version before")
    def rollback(given: Rollback, request: Request) -> Response:
        return service.switched("rollback", versions.rollback(given.name), request.state.request_id)

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether it answers")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/metrics", summary="Figures in the text format of Prometheus")
    async def metrics() -> Response:
        return Response(service.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/card", summary="What it is, its licence, intended use and limits")
    async def card() -> dict[str, object]:
        return service.card()

    add_files(app, "drop.html", ("drop.js", "drop.css"))
    add_refusals(app, "The request is not what /openapi.json says.", "Compare it with /openapi.json.")

    @app.exception_handler(Refused)
    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(error.status, error.what, error.do, request_id=request.state.request_id)

    return app
